"""What fine-tuning needs of a converted file: to read it safely, and to see that the model took all of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from transfer.weights import containers, manifest
from transfer.weights.canonicalise import some
from transfer.weights.names import in_detector


def read_converted(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a converted Detectron2 `.pkl` with an unpickler that makes arrays and plain types alone.

    Args:
        path: a file that `tools/convert.py IN OUT.pkl` wrote.

    Returns:
        Tensors by Detectron2's ResNet names (`stem.conv1.weight`, `res5.2.conv3.weight`, …), float32, read-only; and
        the manifest, against which every name, shape and digest has been checked.

    Raises:
        UserError: the file is missing, damaged, foreign, or not what its manifest says.
    """
    content = containers.load(path)
    tree = content.at() or {}
    tensors = content.tensors("model")
    if content.kind != "pickle" or "manifest" not in tree or not tensors:
        raise UserError(
            f"{path} was not written by this project; convert it first: python tools/convert.py {path} OUT.pkl"
        )
    if "__author__" not in tree or tree.get("matching_heuristics") is not True:
        raise UserError(
            f"{path} lacks __author__ or matching_heuristics: Detectron2 would misread it; convert it again"
        )
    manifest.check(tree["manifest"], tensors, str(path))
    return tensors, tree["manifest"]


def check_loaded(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> str:
    """See that a C4 detector holds every tensor of a converted file, bit for bit.

    Args:
        model: the detector, before its first step; may be wrapped in DistributedDataParallel, on any device.
        tensors: what `read_converted` returned.

    Returns:
        `"265/265 exact"`.

    Raises:
        UserError: a tensor is not in the model, or differs from the file; the first few are named.
    """
    state = {name.removeprefix("module."): value for name, value in model.state_dict().items()}
    bad = [in_detector(name) for name, tensor in tensors.items() if not _same(state.get(in_detector(name)), tensor)]
    if bad:
        raise UserError(
            f"{len(tensors) - len(bad)}/{len(tensors)} tensors of the weights are in the model; "
            f"{len(bad)} are missing or differ: {some(bad)}; convert the weights again and check MODEL.WEIGHTS"
        )
    return f"{len(tensors)}/{len(tensors)} exact"


def _same(held: torch.Tensor | None, wanted: torch.Tensor) -> bool:
    """Bit for bit the same: `equal` would call 0 and −0 the same, and NaN different from itself."""
    if held is None or held.shape != wanted.shape or held.dtype != wanted.dtype:
        return False
    return torch.equal(held.detach().cpu().view(torch.int32), wanted.view(torch.int32))
