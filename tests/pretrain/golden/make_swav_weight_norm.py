"""Make swav_weight_norm.json: facebookresearch/swav's own training loop on prototypes under torch's weight norm.

    python tests/pretrain/golden/make_swav_weight_norm.py SWAV

As make_swav.py, but the prototypes' layer has torch's `weight_norm` with each length fixed at 1: the gradient passes
through the normalization, and the loop's own normalization, which writes to a computed weight, changes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.parametrizations import weight_norm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))
from tests.pretrain.golden import make_swav  # noqa: E402
from tests.pretrain.golden import narrow_contrast as fixed  # noqa: E402
from tests.pretrain.golden.harness import write_golden_values  # noqa: E402

ORIGINALS = {name: commit for name, commit in make_swav.ORIGINALS.items() if name.endswith("/swav")}
LENGTH, DIRECTION = (f"prototypes.parametrizations.weight.original{number}" for number in (0, 1))


def files(clones: Sequence[Path]) -> dict[str, Path]:
    """The original's files."""
    return {file.name: file for file in (clones[0] / "main_swav.py", clones[0] / "src" / "resnet50.py")}


def values(clones: Sequence[Path], _files: Mapping[str, Path]) -> dict[str, Any]:
    """All golden values."""
    original = make_swav.load(clones[0])
    queues = {"plain": None, "queue": fixed.QUEUE}
    return {"torch": torch.__version__, "runs": {name: run(original, queue) for name, queue in queues.items()}}


def run(original: Any, queue: int | None) -> dict[str, Any]:
    """As make_swav's, with the weights' norm."""
    found = make_swav.run(original, queue, _with_weight_norm)
    length = found["end"].pop(LENGTH)
    assert length[0] == fixed.RUN_PROTOTYPES, "a length has changed"
    found["end"]["prototypes.weight"] = found["end"].pop(DIRECTION)
    return found


def _with_weight_norm(model: make_swav.Narrow) -> None:
    weight_norm(model.prototypes)
    length = model.get_parameter(LENGTH)
    length.data.fill_(1.0)
    length.requires_grad_(False)


if __name__ == "__main__":
    write_golden_values("swav_weight_norm", __doc__, ORIGINALS, files, values)
