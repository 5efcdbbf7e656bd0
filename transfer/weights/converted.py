"""Converted files: their manifest, and reading a `.pkl` safely for fine-tuning."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ssl_transfer.environment import commit, version_of
from ssl_transfer.errors import UserError, abbreviate
from ssl_transfer.files import read_json
from ssl_transfer.formats.backbone import Preprocessing
from ssl_transfer.formats.manifest import MANIFEST_FORMAT, Manifest, TensorEntry, ToolVersion
from transfer.weights.containers import read_checkpoint
from transfer.weights.resnet import BLOCKS, Backbone, tensor_shapes
from transfer.weights.tensor_names import has_fpn, in_detector

REMEDY = "convert it again"


def tensor_sha256(tensor: torch.Tensor) -> str:
    """SHA-256 of the tensor's bytes (C order, little-endian float32), hex."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().data).hexdigest()


def build_manifest(backbone: Backbone, rename: Callable[[str], str]) -> Manifest:
    """The manifest of a backbone, without a proof.

    Args:
        backbone: what is written.
        rename: torchvision's name → the name in the written file.
    """
    tensors = {
        rename(name): TensorEntry(shape=list(tensor.shape), sha256=tensor_sha256(tensor))
        for name, tensor in backbone.tensors.items()
    }
    return Manifest(
        arch=backbone.arch,
        source=backbone.source,
        preprocessing=backbone.preprocessing,
        origin=backbone.origin,
        tensors=tensors,
        count=len(tensors),
        left_out=backbone.dropped,
        converted_up=backbone.converted_up,
        warnings=backbone.warnings,
        proof=None,
        tool=ToolVersion(version=version_of("ssl-detection-transfer") or "unknown", commit=commit()),
        toy=bool((backbone.origin or {}).get("toy", False)),
    )


def manifest_path(path: str | Path) -> Path:
    """The manifest beside a converted file: `NAME.manifest.json`."""
    return Path(path).with_suffix(".manifest.json")


def has_manifest(path: str | Path) -> bool:
    """Whether a manifest is beside the file, so that this tool wrote it."""
    try:
        value = read_json(manifest_path(path))
    except UserError:
        return False
    return isinstance(value, dict) and value.get("format") == MANIFEST_FORMAT


def check_manifest(data: Any, tensors: Mapping[str, torch.Tensor], where: str) -> Manifest:
    """Compare a manifest with the tensors of its file.

    Args:
        data: the manifest as read from a converted file.
        tensors: the file's tensors, named as in the manifest.
        where: the file, for messages.

    Raises:
        UserError: it is not a valid manifest, or a tensor's name, shape or digest differs from what it says.
    """
    if not isinstance(data, dict) or data.get("format") != MANIFEST_FORMAT:
        raise UserError(
            f"{where} has no manifest of format {MANIFEST_FORMAT}: it was not written by tools/convert.py; {REMEDY}"
        )
    manifest = Manifest.parse(data, f"{where}, manifest", REMEDY)
    if manifest.arch not in BLOCKS:
        raise UserError(f"{where}, manifest: arch: must be one of {', '.join(BLOCKS)}, not {manifest.arch!r}; {REMEDY}")
    total = len(tensor_shapes(manifest.arch))
    if len(manifest.tensors) != total or manifest.tensors.keys() != tensors.keys():
        raise UserError(
            f"{where}: {len(tensors)} tensors, the manifest names {len(manifest.tensors)}, a {manifest.arch} has "
            f"{total}; {REMEDY}"
        )
    for name, tensor in tensors.items():
        entry = manifest.tensors[name]
        if tensor.dtype != torch.float32 or entry.shape != list(tensor.shape):
            raise UserError(f"{where}: {name} does not have the shape or type that its manifest says; {REMEDY}")
        if entry.sha256 != tensor_sha256(tensor):
            raise UserError(f"{where}: {name} does not have its manifest's digest: the file is damaged; {REMEDY}")
    return manifest


def read_converted(path: str | Path) -> tuple[dict[str, torch.Tensor], Manifest]:
    """Read a converted Detectron2 `.pkl` without running any code in it.

    Args:
        path: a file that `tools/convert.py IN OUT.pkl` wrote.

    Returns:
        Tensors by Detectron2's ResNet names (`stem.conv1.weight`, `res5.2.conv3.weight`, …), float32, read-only; and
        the manifest. Every name, shape and digest has been compared with it.

    Raises:
        UserError: the file is missing, damaged, not a converted file, or not what its manifest says.
    """
    checkpoint = read_checkpoint(path)
    tree = checkpoint.at() or {}
    tensors = checkpoint.tensors("model")
    if checkpoint.kind != "pickle" or "manifest" not in tree or not tensors:
        raise UserError(
            f"{path} was not written by this project; convert it first: python tools/convert.py {path} OUT.pkl"
        )
    if "__author__" not in tree or tree.get("matching_heuristics") is not True:
        raise UserError(
            f"{path} has no __author__ or matching_heuristics: Detectron2 would misread it; convert it again"
        )
    return tensors, check_manifest(tree["manifest"], tensors, str(path))


def check_loaded(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> str:
    """Check that a C4 or FPN detector has every tensor of a converted file, bit for bit.

    Args:
        model: the detector before its first step; may be wrapped in DistributedDataParallel, on any device.
        tensors: as `read_converted` returns them.

    Returns:
        `"265/265 exact"`.

    Raises:
        UserError: a tensor is missing from the model or differs from the file; names the first few.
    """
    state = {name.removeprefix("module."): value for name, value in model.state_dict().items()}
    fpn = has_fpn(state)
    named = {in_detector(name, fpn): tensor for name, tensor in tensors.items()}
    bad = [name for name, tensor in named.items() if not _equal_bits(state.get(name), tensor)]
    if bad:
        raise UserError(
            f"{len(tensors) - len(bad)}/{len(tensors)} tensors of the weights are in the model; "
            f"{len(bad)} are missing or differ: {abbreviate(bad)}; convert the weights again and check MODEL.WEIGHTS"
        )
    return f"{len(tensors)}/{len(tensors)} exact"


def _equal_bits(actual: torch.Tensor | None, expected: torch.Tensor) -> bool:
    """torch.equal would treat 0 and −0 as equal, and NaN as different from itself."""
    if actual is None or actual.shape != expected.shape or actual.dtype != expected.dtype:
        return False
    return torch.equal(actual.detach().cpu().view(torch.int32), expected.view(torch.int32))


def detectron2_values(preprocessing: Preprocessing) -> dict[str, Any]:
    """The Detectron2 config keys that prepare images as in the weights' own training.

    Returns:
        Dotted key → value, for INPUT.FORMAT, MODEL.PIXEL_MEAN, MODEL.PIXEL_STD (in the order of INPUT.FORMAT, 0…255
        scale) and MODEL.RESNETS.STRIDE_IN_1X1.
    """
    return {
        "INPUT.FORMAT": preprocessing.channel_order,
        "MODEL.PIXEL_MEAN": list(preprocessing.mean),
        "MODEL.PIXEL_STD": list(preprocessing.std),
        "MODEL.RESNETS.STRIDE_IN_1X1": preprocessing.stride_in_1x1,
    }


def apply_preprocessing(cfg: Any, preprocessing: Preprocessing) -> None:
    """Set `detectron2_values` in a Detectron2 CfgNode, in place."""
    cfg.merge_from_list([item for key_and_value in detectron2_values(preprocessing).items() for item in key_and_value])
