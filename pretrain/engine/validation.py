"""Labels of the training set, and a classifier's accuracy on a validation set every few epochs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from common.errors import UserError
from pretrain.data.index import ImageIndex
from pretrain.engine.measure import Measurement, labelled_root
from pretrain.engine.trainer import Trainer
from pretrain.evaluation.data import FixedView, LabelledSet, labelled_set
from pretrain.evaluation.features import frozen, own_image_count
from pretrain.evaluation.linear import accuracy
from pretrain.evaluation.sources import test_share
from pretrain.methods import needs_labels

NAME = "val_top1"


def check_labels(cfg: CfgNode, index: ImageIndex) -> None:
    """Raise UserError where a method needs classes and the training set has none, or but one."""
    if not needs_labels(cfg.METHOD):
        return
    if index.labels is None or index.classes is None:
        loose = next((name for name in index.files if "/" not in name), None) if index.given is None else None
        why = f"{loose} in {index.folder} lies in no class folder" if loose else f"{cfg.DATA.ROOT} names none"
        raise UserError(f"METHOD {cfg.METHOD} needs each image's class, but {why}; see docs/guides/data.md")
    if len(index.classes) < 2:
        raise UserError(f"METHOD {cfg.METHOD} needs two classes or more; {index.folder} holds {index.classes[0]} alone")


def validation_set(cfg: CfgNode, index: ImageIndex) -> LabelledSet | None:
    """The labelled set of the MONITOR.VALIDATION keys, its labels counted as the training set's; None where it is off.

    Raises:
        UserError: the method has no classifier, or the set is missing or has a class that the training set has not.
    """
    keys = cfg.MONITOR.VALIDATION
    if not keys.PERIOD:
        return None
    if not needs_labels(cfg.METHOD):
        raise UserError(f"MONITOR.VALIDATION.PERIOD is {keys.PERIOD}, but METHOD {cfg.METHOD} has no classifier; set 0")
    root, said_by = labelled_root(cfg, "VALIDATION")
    found = labelled_set(Path(root).expanduser(), keys.FOLDER, said_by)
    place = {name: number for number, name in enumerate(index.classes or ())}
    unknown = [name for name in found.classes if name not in place]
    if unknown:
        raise UserError(f"{said_by} {found.index.folder}: class {unknown[0]} is not among the training set's")
    number = torch.tensor([place[name] for name in found.classes])
    return replace(found, labels=number[found.labels], classes=tuple(index.classes or ()))


class ValidationMonitor(Measurement):
    """Measures the method's classifier: `val_top1` and, with classes enough, `val_top5` in per cent.

    Each image is counted once, by one of the processes. Features are computed in the run's precision, the classifier in
    float32.

    Args:
        cfg: the run's config.
        images: the validation set.
        folder: the run's.
        steps_per_epoch: iterations an epoch.
    """

    name, board = NAME, "validation"

    def __init__(self, cfg: CfgNode, images: LabelledSet, folder: Path, steps_per_epoch: int) -> None:
        super().__init__(cfg, cfg.MONITOR.VALIDATION.PERIOD, folder, steps_per_epoch)
        self.images = images
        self.view = FixedView(cfg.DATA.SIZE, cfg.MONITOR.VALIDATION.RESIZE)

    def measure(self, trainer: Trainer) -> dict[str, float]:
        """The share of images whose class is the likeliest, or among the five likeliest."""
        told = self.progress(own_image_count(self.images), "validation, images")
        with frozen(trainer.method.encoder):
            share = test_share(self.extractor(trainer), self.images, self.view, self.cfg.DATA.WORKERS, told)
        return {f"val_{name}": value for name, value in accuracy(trainer.method.classifier, share).items()}

    def said(self, values: dict[str, float], epoch: float) -> str:
        """The values."""
        shares = ", ".join(f"{name.removeprefix('val_')} {value:.2f} %" for name, value in values.items())
        return f"validation after epoch {epoch:.2f}: {shares}"
