"""BYOL as DeepMind released it (JAX) and SimCLR (TensorFlow): recognised and refused.

Their convolutions pad with SAME, which at stride 2 pads the two sides differently; torch's pad both sides equally. The
weights would load, and their features would be worse by an unknown amount.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ssl_transfer.errors import UserError
from transfer.weights.containers import CheckpointFile
from transfer.weights.match import Match

NAME_PARTS = ("initial_conv", "block_group_", "conv2d/kernel", "batch_normalization", "moving_variance")
"""They occur in haiku's and TensorFlow's tensor names."""


class SamePadding:
    """Recognised by the names of tensors."""

    name = "same_padding"
    title = "BYOL (DeepMind, JAX), SimCLR (TensorFlow)"

    def match(self, checkpoint: CheckpointFile) -> Match | None:
        """Recognise the layout.

        Raises:
            UserError: the file is of this family.
        """
        found = next((name for name in _names(checkpoint.tree) if any(part in name for part in NAME_PARTS)), None)
        if found is None:
            return None
        raise UserError(
            f"{checkpoint.path} comes from JAX or TensorFlow ({found}): its network pads with SAME, torch's ResNet "
            "does not, and the features would differ; use a PyTorch checkpoint of the method instead"
        )

    def describe(self) -> str:
        return "haiku's or TensorFlow's tensor names"


def _names(root: Any) -> Iterator[str]:
    """The keys of nested mappings, each mapping's once."""
    seen, todo = set(), [root]
    while todo:
        value = todo.pop()
        if isinstance(value, Mapping) and id(value) not in seen:
            seen.add(id(value))
            yield from (str(key) for key in value)
            todo += reversed(list(value.values()))


LAYOUT = SamePadding()
