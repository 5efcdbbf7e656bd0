"""What a backbone can be written as: each target's names, file type, writer, reader and proof."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError, nearest
from transfer.weights import backbone_file, containers, converted, names, proof, reference
from transfer.weights import manifest as manifests
from transfer.weights.canonical import Preprocessing
from transfer.weights.writers import detectron2, safetensors, torchvision

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Target:
    """A target format.

    Attributes:
        name: what `--to` calls it.
        suffixes: what its files may end with; the first is the usual one.
        rename: torchvision's tensor name → the target's.
        write: (path, tensors by the target's names, manifest) → a file.
        read: path → tensors and manifest, both checked.
        prove: (path, manifest, the source's features) → the proof.
    """

    name: str
    suffixes: tuple[str, ...]
    rename: Callable[[str], str]
    write: Callable[[Path, Tensors, dict[str, Any]], None]
    read: Callable[[Path], tuple[dict[str, torch.Tensor], dict[str, Any]]]
    prove: Callable[[Path, Mapping[str, Any], Tensors], proof.Proof]


def _same_name(name: str) -> str:
    return name


def _read_backbone_file(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A `.pth` or `.safetensors` of ours, checked against the manifest in it."""
    content = containers.load(path)
    manifest = backbone_file.parsed(content.metadata, "manifest", str(path))
    manifests.check(manifest, content.tensors(), str(path))
    return content.tensors(), manifest


def _prove_backbone_file(path: Path, manifest: Mapping[str, Any], expected: Tensors) -> proof.Proof:
    """Load a `.pth` or `.safetensors` into torchvision's ResNet and compare tensors and features with the source."""
    tensors, held = _read_backbone_file(path)
    if held["tensors"] != manifest["tensors"]:
        raise UserError(f"{path}: the written tensors are not the source's")
    got = reference.forward(manifest["arch"], tensors, Preprocessing.from_dict(held["preprocessing"], str(path)))
    worst = proof.compare_features(got, expected, str(path))
    return proof.Proof(f"{len(tensors)}/{manifest['count']}", worst, "torchvision")


DETECTRON2 = Target(
    "detectron2", (".pkl",), names.to_detectron2, detectron2.write, converted.read_converted, proof.prove_detectron2
)
TORCHVISION = Target(
    "torchvision", (".pth", ".pt"), _same_name, torchvision.write, _read_backbone_file, _prove_backbone_file
)
SAFETENSORS = Target(
    "safetensors", (".safetensors",), _same_name, safetensors.write, _read_backbone_file, _prove_backbone_file
)

TARGETS = {target.name: target for target in (DETECTRON2, TORCHVISION, SAFETENSORS)}


def check_fits(target: Target, block: Preprocessing, where: str) -> None:
    """torchvision's names cannot say where a stage's stride lies.

    Raises:
        UserError: the weights have it on the 1×1 and the target is not Detectron2's.
    """
    if block.stride_in_1x1 and target.name != "detectron2":
        raise UserError(
            f"{where}: its stride lies on the 1×1 (Caffe), where torchvision's ResNet has it on the 3×3: written as "
            f"{target.name} the weights would compute something else; use --to detectron2"
        )


def target_of(out: Path, name: str | None) -> Target:
    """The target that `--to` names, or that the output's ending means.

    Raises:
        UserError: unknown, or the ending is another target's.
    """
    every = [suffix for target in TARGETS.values() for suffix in target.suffixes]
    if name is None:
        fitting = [target for target in TARGETS.values() if out.suffix in target.suffixes]
        if not fitting:
            raise UserError(f"{out}: the output must end with one of {', '.join(every)}, or say --to what it shall be")
        return fitting[0]
    if name not in TARGETS:
        raise UserError(f"--to {name}: no such target; {nearest(name, TARGETS)}")
    if out.suffix not in TARGETS[name].suffixes:
        raise UserError(f"{out}: a file for {name} must end with {' or '.join(TARGETS[name].suffixes)}")
    return TARGETS[name]
