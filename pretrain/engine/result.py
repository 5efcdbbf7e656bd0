"""The files of a finished run: backbone, classifier and result (docs/reference/formats.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from detectron2.utils import comm
from fvcore.common.config import CfgNode
from torch import nn

from pretrain.data.augment import preprocessing_block
from pretrain.engine.run_folder import RunFolder
from pretrain.engine.trainer import Trainer
from pretrain.models.encoder import backbone_tensors
from ssl_transfer import environment
from ssl_transfer.files import atomic_write, sha256_of
from ssl_transfer.formats.backbone import BackboneMetadata, Branch, Preprocessing, seal_safetensors
from ssl_transfer.formats.results import PretrainResult

CLASSIFIER_FORMAT = "classifier/1"


def write_result(
    cfg: CfgNode,
    recipe: str,
    folder: RunFolder,
    trainer: Trainer,
    *,
    measured: Mapping[str, Any],
    classes: Sequence[str] = (),
) -> None:
    """Write the backbone file, the classifier's if the method has one, then the result. Called by the main process.

    Args:
        cfg: the run's config.
        recipe: the config file's stem.
        folder: the run's folder.
        trainer: after its last iteration.
        measured: further keys of the result: duration, alarm, accuracies.
        classes: what a classifier's outputs stand for; empty if the method has none.
    """
    versions = environment.describe()
    origin = _describe_origin(cfg, recipe, trainer.iter, versions)
    block = preprocessing_block(cfg.AUGMENT.STYLE)
    write_backbone(folder.backbone, backbone_tensors(trainer.method.encoder), cfg.MODEL.ARCH, block, origin)
    digest = sha256_of(folder.backbone)
    if classes:
        write_classifier(folder.classifier, trainer.method.classifier, classes, cfg.MODEL.ARCH, digest)
    content = {
        "status": "done",
        "method": cfg.METHOD,
        "arch": cfg.MODEL.ARCH,
        "epochs": cfg.SOLVER.EPOCHS,
        "iterations": trainer.iter,
        "dim": trainer.method.dim,
        "final": trainer.latest,
        **measured,
        "backbone": folder.backbone.name,
        "backbone_sha256": digest,
        **_write_target(cfg, folder, trainer, origin),
        "toy": cfg.TOY,
        "num_processes": comm.get_world_size(),
        "environment": versions,
    }
    PretrainResult.parse(content, folder.result).write(folder.result)


def _write_target(cfg: CfgNode, folder: RunFolder, trainer: Trainer, origin: dict[str, Any]) -> dict[str, Any]:
    """Write the momentum encoder's backbone file if the method has one; return its keys of the result."""
    encoder = getattr(trainer.method, "target_encoder", None)
    if encoder is None:
        return {}
    path, block = folder.target_backbone, preprocessing_block(cfg.AUGMENT.STYLE)
    write_backbone(path, backbone_tensors(encoder), cfg.MODEL.ARCH, block, origin, branch="target")
    return {"backbone_target": path.name, "backbone_target_sha256": sha256_of(path)}


def _describe_origin(cfg: CfgNode, recipe: str, iterations: int, versions: dict[str, Any]) -> dict[str, Any]:
    return {
        "method": cfg.METHOD,
        "recipe": recipe,
        "epochs": cfg.SOLVER.EPOCHS,
        "epoch": cfg.SOLVER.EPOCHS,
        "iteration": iterations,
        "config": cfg.dump(),
        "toy": cfg.TOY,
        "commit": versions["commit"],
        "versions": {name: versions[name] for name in ("python", "torch", "torchvision")},
    }


def write_backbone(
    path: Path,
    tensors: dict[str, torch.Tensor],
    arch: str,
    preprocessing: dict[str, Any],
    origin: dict[str, Any],
    *,
    branch: Branch = "online",
) -> None:
    """Write a backbone file atomically.

    Args:
        path: the file.
        tensors: as `models.encoder.backbone_tensors` returns them.
        arch: MODEL.ARCH.
        preprocessing: how images become the network's input, as the format describes it.
        origin: where the weights come from; JSON types.
        branch: `online`, or `target` for a momentum encoder.
    """
    described = Preprocessing.parse(preprocessing, path)
    metadata = BackboneMetadata(arch=arch, branch=branch, preprocessing=described, origin=origin).encode()
    _write_tensors(path, tensors, metadata)


def write_classifier(path: Path, layer: nn.Linear, classes: Sequence[str], arch: str, backbone_sha256: str) -> None:
    """Write the linear layer on a backbone's features atomically, as `fc.weight` and `fc.bias`, float32.

    Args:
        path: the file.
        layer: on any device.
        classes: what its outputs stand for.
        arch: MODEL.ARCH.
        backbone_sha256: of the backbone file that it belongs to.
    """
    tensors = {f"fc.{name}": t.detach().to("cpu", torch.float32).contiguous() for name, t in layer.named_parameters()}
    metadata = {
        "format": CLASSIFIER_FORMAT,
        "arch": arch,
        "classes": json.dumps(list(classes)),
        "backbone_sha256": backbone_sha256,
    }
    _write_tensors(path, tensors, metadata)


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    with atomic_write(path) as stream:
        stream.writelines(seal_safetensors(safetensors.torch.save(tensors, metadata)))
