"""What an evaluation says in the end (reference/formats.md), and whether it may stand beside a published number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from fvcore.common.config import CfgNode

from common import environment
from common.errors import UserError
from pretrain.evaluation.backbone import LoadedBackbone
from pretrain.evaluation.config import settings
from pretrain.evaluation.data import LabelledSet

FORMAT = "evaluation-result/1"
IMAGENET = {"classes": 1000, "training images": 1281167, "test images": 50000}
"""ILSVRC 2012's classes and images: what the published numbers were measured on."""


@dataclass(frozen=True)
class Asked:
    """What the user asked for; picklable, so that every process gets it.

    Attributes:
        kind: knn or linear.
        recipe: the config file's stem, for the record.
        weights: the backbone file.
        data: the labelled set's folder.
        output: the evaluation's folder; None (kNN alone) to write nothing.
        resume: go on with what the folder holds, where it holds something.
        name, epochs: what the weights file does not say: their name, and the epochs they were pre-trained for.
    """

    kind: str
    recipe: str
    weights: str
    data: str
    output: str | None
    resume: bool = False
    name: str | None = None
    epochs: int | None = None


def origin_of(backbone: LoadedBackbone, asked: Asked) -> dict[str, Any]:
    """The file's origin, with what the user declares where it has none.

    Raises:
        UserError: the file says how long its weights were trained, and the user says something else.
    """
    origin = dict(backbone.origin)
    if asked.epochs is None:
        return origin
    if origin.get("epochs") not in (None, asked.epochs):
        known = origin["epochs"]
        raise UserError(f"--pretrain-epochs {asked.epochs}: {backbone.path} says that it was {known}; leave it out")
    return {**origin, "epochs": asked.epochs} if "epochs" in origin else {"epochs": asked.epochs, "declared": True}


def build(
    asked: Asked,
    cfg: CfgNode,
    backbone: LoadedBackbone,
    sets: tuple[LabelledSet, LabelledSet],
    metrics: Mapping[str, float] | None,
    divergence: Mapping[str, Any] | None,
    timing: Mapping[str, float],
) -> dict[str, Any]:
    """The result's JSON.

    Args:
        asked, cfg, backbone, sets: what was evaluated, and how.
        metrics: in per cent; None where the run diverged.
        divergence: where and how it diverged, or None.
        timing: `seconds`, and parts of them.
    """
    origin = origin_of(backbone, asked)
    train, test = sets
    sizes = {"classes": len(train.classes), "training images": len(train), "test images": len(test)}
    stem = backbone.path.stem
    linear = asked.kind == "linear"
    return {
        "format": FORMAT,
        "status": "diverged" if divergence else "done",
        "kind": asked.kind,
        "seed": cfg.SEED,
        "toy": cfg.TOY or bool(origin.get("toy")),
        "metrics": None if metrics is None else dict(metrics),
        "divergence": dict(divergence) if divergence else None,
        **({"comparable": _comparable(cfg, sizes)} if linear else {}),
        "settings": {
            **settings(cfg, asked.kind),
            **{name.replace(" ", "_"): value for name, value in sizes.items()},
            "augmentation": linear and not cfg.LINEAR.CACHE_FEATURES,
            "num_processes": comm.get_world_size(),
        },
        "weights": {
            "name": asked.name or _name(backbone.path.resolve(), stem),
            "path": str(backbone.path),
            "sha256": backbone.sha256,
            "arch": backbone.arch,
            "origin": origin,
        },
        "config": {"recipe": asked.recipe, "data": str(Path(asked.data))},
        "environment": {**environment.describe(), "timm": environment.version_of("timm")},
        "timing": dict(timing),
    }


def _comparable(cfg: CfgNode, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Whether a linear evaluation may stand beside the published ones, and all that speaks against it."""
    reasons = [f"{sizes[name]} {name}, not {count}" for name, count in IMAGENET.items() if sizes[name] != count]
    wanted = {"DATA.SIZE": 224, "DATA.RESIZE": 256, "LINEAR.EPOCHS": 90}
    found = settings(cfg, "linear")
    reasons += [f"{key} is {found[key]}, not {value}" for key, value in wanted.items() if found[key] != value]
    if cfg.LINEAR.CACHE_FEATURES:
        reasons.append("training features of fixed views: no augmentation")
    if cfg.LINEAR.OPTIMIZER != "lars":
        reasons.append("SGD, not LARS, which is about 1 point lower")
    return {"ok": not reasons, "reasons": reasons}


def _name(path: Path, stem: str) -> str:
    """A run's folder names what lies in it under the names that every run has, the momentum encoder's with a mark."""
    names = {"backbone": path.parent.name, "backbone_target": f"{path.parent.name} (target)"}
    return names.get(stem, stem)
