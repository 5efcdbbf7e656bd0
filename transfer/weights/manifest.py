"""The manifest that goes beside and inside every converted file (docs/reference/formats.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from common.environment import commit, version_of
from common.errors import UserError
from common.files import read_json
from transfer.weights import architecture
from transfer.weights.canonical import Backbone, Preprocessing
from transfer.weights.match import keep

FORMAT = "manifest/1"


def digest(tensor: torch.Tensor) -> str:
    """SHA-256 over the tensor's bytes (C order, little-endian float32), hex."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().data).hexdigest()


def build(backbone: Backbone, rename: Callable[[str], str | None] = keep) -> dict[str, Any]:
    """The manifest of a backbone, `proof` still null.

    Args:
        backbone: what is written.
        rename: torchvision's name → the target's.
    """
    tensors = {
        str(rename(name)): {"shape": list(tensor.shape), "sha256": digest(tensor)}
        for name, tensor in backbone.tensors.items()
    }
    return {
        "format": FORMAT,
        "arch": backbone.arch,
        "source": asdict(backbone.source),
        "preprocessing": backbone.preprocessing.as_dict(),
        "origin": backbone.origin,
        "tensors": tensors,
        "count": len(tensors),
        "left_out": [asdict(item) for item in backbone.left_out],
        "converted_up": list(backbone.converted_up),
        "warnings": list(backbone.warnings),
        "proof": None,
        "tool": {"version": version_of("ssl-detection-transfer") or "unknown", "commit": commit()},
        "toy": bool((backbone.origin or {}).get("toy", False)),
    }


def beside(path: str | Path) -> Path:
    """Where the manifest of a converted file lies: `NAME.manifest.json`."""
    return Path(path).with_suffix(".manifest.json")


def check(manifest: Any, tensors: Mapping[str, torch.Tensor], where: str) -> Preprocessing:
    """A manifest against the tensors it came with.

    Args:
        manifest: as read from a converted file.
        tensors: the file's tensors, named as the manifest names them.
        where: the file, for messages.

    Returns:
        The preprocessing block.

    Raises:
        UserError: the manifest is not one, or any tensor's name, shape or digest differs from what it says.
    """
    again = "convert it again"
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(
            f"{where} holds no manifest of format {FORMAT}: it was not written by tools/convert.py; {again}"
        )
    arch, said = manifest.get("arch"), manifest.get("tensors")
    source = manifest.get("source")
    if arch not in architecture.BLOCKS or not isinstance(said, dict) or not isinstance(source, dict):
        raise UserError(f"{where}: the manifest's arch, source or tensors are not right; {again}")
    if source.get("branch") not in ("online", "target"):
        raise UserError(f"{where}: the manifest's branch is neither online nor target; {again}")
    total = len(architecture.shapes(str(arch)))
    if len(said) != total or said.keys() != tensors.keys():
        raise UserError(
            f"{where}: {len(tensors)} tensors, the manifest names {len(said)}, a {arch} has {total}; {again}"
        )
    for name, tensor in tensors.items():
        entry = said[name]
        if not isinstance(entry, dict) or tensor.dtype != torch.float32 or entry.get("shape") != list(tensor.shape):
            raise UserError(f"{where}: {name} is not of the shape or type its manifest says; {again}")
        if entry.get("sha256") != digest(tensor):
            raise UserError(f"{where}: {name} does not have the digest its manifest says: the file is damaged; {again}")
    return Preprocessing.from_dict(manifest.get("preprocessing"), where)


def is_ours(path: str | Path) -> bool:
    """Whether a manifest of this tool lies at `path`."""
    try:
        value = read_json(path)
    except UserError:
        return False
    return isinstance(value, dict) and value.get("format") == FORMAT
