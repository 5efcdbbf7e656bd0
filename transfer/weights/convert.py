"""From a checkpoint to a proven file: read, write aside, prove, put in place; or nothing at all."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.files import write_json
from transfer.weights import manifest as manifests
from transfer.weights import reference
from transfer.weights.canonical import Backbone
from transfer.weights.proof import Proof
from transfer.weights.read import read_backbone
from transfer.weights.targets import Target, check_fits, target_of


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        out: the written file.
        manifest: as written beside and inside it.
        proof: None when it was not asked for.
        warnings: what the user should know.
    """

    out: Path
    manifest: dict[str, Any]
    proof: Proof | None
    warnings: list[str] = field(default_factory=list)


def convert(
    path: str | Path,
    out: str | Path,
    *,
    source: str = "auto",
    branch: str | None = None,
    to: str | None = None,
    verify: bool = True,
    trust: bool = False,
) -> Conversion:
    """Convert a checkpoint; the output and its manifest appear only when everything went well.

    Args:
        path: any checkpoint of a known layout.
        out: the file to write; its manifest goes beside it.
        source: a layout's name, or `auto`.
        branch: `online`, `target`, or None for the layout's own default.
        to: a target's name, or None for what `out`'s ending means.
        verify: whether the written file is proven against the source.
        trust: let the checkpoint's own pickle run.

    Raises:
        UserError: anything that is wrong with the input, the options or the proof.
    """
    out = Path(out)
    target = target_of(out, to)
    _check_place(Path(path), out)
    backbone = read_backbone(path, source, branch, trust)
    check_fits(target, backbone.preprocessing, str(path))
    expected = reference.features(backbone) if verify else None
    with _folder_beside(out) as folder:
        aside = Path(folder) / out.name
        manifest = _write(aside, target, backbone)
        warnings = backbone.warnings
        del backbone  # the proof needs digests and features alone: peak memory stays low
        proof = None
        if expected is not None:
            proof = target.prove(aside, manifest, expected)
            manifest = _sealed(aside, target, {**manifest, "proof": proof.as_dict()})
        write_json(manifests.beside(out), manifest)
        _put(aside, out)
    return Conversion(out, manifest, proof, warnings)


def _write(path: Path, target: Target, backbone: Backbone) -> dict[str, Any]:
    manifest = manifests.build(backbone, target.rename)
    tensors = {target.rename(name): tensor for name, tensor in backbone.tensors.items()}
    target.write(path, tensors, manifest)
    return manifest


def _sealed(path: Path, target: Target, manifest: dict[str, Any]) -> dict[str, Any]:
    """Write the proven tensors once more, now with the proof in the manifest inside, and read them back."""
    tensors: dict[str, torch.Tensor] = target.read(path)[0]
    target.write(path, tensors, manifest)
    del tensors
    return target.read(path)[1]


def _put(aside: Path, out: Path) -> None:
    """Flush the file to disk, then give it its name. The manifest lies there already: the one inside is the truth."""
    with open(aside, "rb") as stream:
        os.fsync(stream.fileno())
    aside.replace(out)


def _folder_beside(out: Path) -> tempfile.TemporaryDirectory[str]:
    """A hidden folder on the output's file system, so that putting the output in place is a rename."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; choose a folder you may write to") from error


def _check_place(path: Path, out: Path) -> None:
    """The output may replace an earlier output of this tool, and nothing else."""
    if out.is_dir():
        raise UserError(f"{out} is a folder; name a file in it")
    if not out.exists():
        return
    if path.exists() and out.samefile(path):
        raise UserError(f"{out} is the input itself; choose another name for the output")
    if not manifests.is_ours(manifests.beside(out)):
        raise UserError(f"{out} exists and was not written by this tool (no manifest beside it); choose another name")
