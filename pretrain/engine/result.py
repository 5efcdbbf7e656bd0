"""What a finished run leaves: its weights' files, then the result that says it is done (docs/reference/formats.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.utils import comm
from fvcore.common.config import CfgNode

from common import environment
from common.files import sha256_of, write_json
from pretrain.data.preprocessing import block
from pretrain.engine.export import write_backbone, write_classifier
from pretrain.engine.folder import RESULT_FORMAT, RunFolder
from pretrain.engine.trainer import Trainer
from pretrain.models.encoder import backbone_tensors


def write_result(
    cfg: CfgNode, recipe: str, folder: RunFolder, trainer: Trainer, facts: dict[str, Any], classes: Sequence[str] = ()
) -> None:
    """Write the backbone file, the classifier's where the method has one, then the result. The main process's business.

    Args:
        cfg: the run's config.
        recipe: the config file's stem.
        folder: the run's.
        trainer: after its last iteration.
        facts: what the monitors have to say, as further keys of the result.
        classes: what a classifier's outputs stand for; empty where the method has none.
    """
    here = environment.describe()
    origin = _origin(cfg, recipe, trainer.iter, here)
    write_backbone(folder.backbone, backbone_tensors(trainer.method.encoder), cfg.MODEL.ARCH, block(), origin)
    digest = sha256_of(folder.backbone)
    if classes:
        write_classifier(folder.classifier, trainer.method.classifier, classes, cfg.MODEL.ARCH, digest)
    result = {
        "format": RESULT_FORMAT,
        "status": "done",
        "method": cfg.METHOD,
        "arch": cfg.MODEL.ARCH,
        "epochs": cfg.SOLVER.EPOCHS,
        "iterations": trainer.iter,
        "dim": trainer.method.dim,
        "final": trainer.latest,
        **facts,
        "backbone": folder.backbone.name,
        "backbone_sha256": digest,
        **_target(cfg, folder, trainer, origin),
        "toy": cfg.TOY,
        "num_processes": comm.get_world_size(),
        "environment": here,
    }
    write_json(folder.result, result)


def _target(cfg: CfgNode, folder: RunFolder, trainer: Trainer, origin: dict[str, Any]) -> dict[str, Any]:
    """Write the momentum encoder's backbone file where the method has one; what the result says of it."""
    encoder = getattr(trainer.method, "target_encoder", None)
    if encoder is None:
        return {}
    path = folder.target_backbone
    write_backbone(path, backbone_tensors(encoder), cfg.MODEL.ARCH, block(), origin, branch="target")
    return {"backbone_target": path.name, "backbone_target_sha256": sha256_of(path)}


def _origin(cfg: CfgNode, recipe: str, iterations: int, here: dict[str, Any]) -> dict[str, Any]:
    """Where the weights come from, as the backbone file tells it."""
    return {
        "method": cfg.METHOD,
        "recipe": recipe,
        "epochs": cfg.SOLVER.EPOCHS,
        "epoch": cfg.SOLVER.EPOCHS,
        "iteration": iterations,
        "config": cfg.dump(),
        "toy": cfg.TOY,
        "commit": here["commit"],
        "versions": {name: here[name] for name in ("python", "torch", "torchvision")},
    }
