"""BYOL as DeepMind released it (JAX) and SimCLR (TensorFlow): recognised and refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from common.errors import UserError
from transfer.weights.containers import Content
from transfer.weights.match import Match

MARKS = ("initial_conv", "block_group_", "conv2d/kernel", "batch_normalization", "moving_variance")
"""Parts of haiku's and TensorFlow's tensor names."""


class SamePadding:
    """Their convolutions pad by SAME, which at stride 2 pads one side more than the other; torch's pad both alike.

    The weights would load and silently be worse by an amount nobody has measured here, so they are refused.
    """

    name = "same_padding"
    title = "BYOL (DeepMind, JAX), SimCLR (TensorFlow)"

    def match(self, content: Content) -> Match | None:
        """See `match.Layout`.

        Raises:
            UserError: the file is of this family.
        """
        telling = next((name for name in _names(content.tree) if any(mark in name for mark in MARKS)), None)
        if telling is None:
            return None
        raise UserError(
            f"{content.path} comes from JAX or TensorFlow ({telling}): its net pads with SAME, torch's ResNet does "
            "not, and the features would differ; take a PyTorch checkpoint of the method instead"
        )

    def expects(self) -> str:
        """See `match.Layout`."""
        return "haiku's or TensorFlow's tensor names"


def _names(value: Any, depth: int = 0) -> Iterator[str]:
    if isinstance(value, Mapping) and depth < 6:
        for key, inner in value.items():
            yield str(key)
            yield from _names(inner, depth + 1)


LAYOUT = SamePadding()
