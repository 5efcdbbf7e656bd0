"""The initial weights of a trial: none, a converted file or a public one; checked before anything is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from ssl_transfer.errors import UserError, nearest
from ssl_transfer.files import sha256_of
from ssl_transfer.formats.backbone import TORCHVISION, Preprocessing
from ssl_transfer.formats.manifest import Manifest
from transfer.engine.config import NO_BASIC_C4
from transfer.weights import public
from transfer.weights.conversion import ensure_converted
from transfer.weights.converted import check_loaded, read_converted
from transfer.weights.resnet import BASIC, depth_of

SCRATCH = "scratch"


@dataclass(frozen=True)
class InitialWeights:
    """The initial weights of a trial.

    Attributes:
        name: `scratch`, the pre-training method, or the file's stem.
        block: the preprocessing of images that they need.
        path, sha256, manifest: of the converted file; None from scratch.
    """

    name: str
    block: Preprocessing
    path: Path | None = None
    sha256: str | None = None
    manifest: Manifest | None = None

    def as_dict(self) -> dict[str, Any]:
        """As a result holds it."""
        path = None if self.path is None else str(self.path)
        manifest = None if self.manifest is None else self.manifest.as_dict()
        return {"name": self.name, "path": path, "sha256": self.sha256, "manifest": manifest}


def find_weights(
    text: str, depth: int, folder: Path, *, fpn: bool = False, single_process: bool = True
) -> InitialWeights:
    """Read and check what `--weights` names; the tensors are not kept.

    Args:
        text: `scratch`, the path of a converted `.pkl`, or `zoo:NAME` or `hf-hub:ORG/NAME` for a public checkpoint
            that was downloaded before.
        depth: MODEL.RESNETS.DEPTH.
        fpn: the detector has a feature pyramid; a C4 detector takes no ResNet of basic blocks.
        folder: the trial's; a public checkpoint is converted there.
        single_process: no other process of the trial calls this.

    Raises:
        UserError: the file is missing, not converted, damaged, or of another depth.
    """
    if text == SCRATCH:
        return InitialWeights(SCRATCH, TORCHVISION)
    path = _from_public(text, folder, single_process) if public.is_public(text) else Path(text)
    if (similar := nearest(text, [SCRATCH])).startswith("did you mean") and not path.exists():
        raise UserError(f"--weights {text}: there is no such file; {similar}")
    _, manifest = read_converted(path)
    found = depth_of(manifest.arch)
    if manifest.arch in BASIC and not fpn:
        raise UserError(f"{path} is a {manifest.arch}: {NO_BASIC_C4}")
    if found != depth:
        raise UserError(
            f"{path} is a {manifest.arch}, but MODEL.RESNETS.DEPTH is {depth}; use weights of that depth or set "
            f"MODEL.RESNETS.DEPTH {found}"
        )
    origin = manifest.origin or {}
    name = str(origin.get("method") or path.stem)
    return InitialWeights(name, manifest.preprocessing, path, sha256_of(path), manifest)


def _from_public(text: str, folder: Path, single_process: bool) -> Path:
    """A public checkpoint as a converted file in the trial's folder, converted now unless it is there already."""
    if not single_process:
        raise UserError(
            f"--weights {text}: several processes cannot convert it at once; "
            f"first python tools/convert.py {text} OUT.pkl, then --weights OUT.pkl"
        )
    made = folder / "weights.pkl"
    if made.exists():
        source, _ = public.resolve(text, download_allowed=False)
        if read_converted(made)[1].source.sha256 == sha256_of(source):
            return made
        raise UserError(f"{made} was not converted from {text}; choose another --output")
    return ensure_converted(text, folder)


def load_weights(model: nn.Module, weights: InitialWeights) -> str:
    """Load the weights with Detectron2's own checkpointer and check that every tensor was loaded.

    Returns:
        For the result: `265/265 exact`, or `scratch`.

    Raises:
        UserError: a tensor is missing or differs.
    """
    if weights.path is None:
        return SCRATCH
    DetectionCheckpointer(model).load(str(weights.path))
    tensors: dict[str, Tensor] = read_converted(weights.path)[0]
    return check_loaded(model, tensors)
