"""Monitors: kNN and validation accuracy, measured on labelled sets every few epochs while a run trains."""

from __future__ import annotations

import json
import logging
import os
import time
from abc import ABC, abstractmethod
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from detectron2.engine.train_loop import HookBase
from detectron2.utils import comm
from fvcore.common.config import CfgNode

from pretrain.data.augment import normalize
from pretrain.data.index import ImageIndex
from pretrain.engine.trainer import Trainer
from pretrain.evaluation.backbone_features import Extractor, feature_width, frozen, own_image_count
from pretrain.evaluation.knn import check_k, knn_accuracy
from pretrain.evaluation.labelled_images import FixedView, LabelledSet, labelled_set, labelled_sets
from pretrain.evaluation.linear import accuracy, extract_shard
from pretrain.methods import needs_labels
from ssl_transfer.errors import UserError
from ssl_transfer.training.collectives import rank0_buffers
from ssl_transfer.training.logs import METRICS, count_progress

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

KNN_TOP1, VAL_TOP1 = "knn_top1", "val_top1"
_log = logging.getLogger(__name__)


class Monitor(HookBase, ABC):
    """Measures before the first step, every `period` epochs and at the end.

    The run is the same with and without it: a subclass changes no weight, running statistic, mode or random state.
    Register it after the checkpoint hook: a run that is killed while it measures then loses nothing, and the resumed
    run measures what is missing. The values are a line of their own in metrics.json, with `epoch` and `iteration`, the
    last one done (0 before the first).

    Args:
        cfg: the run's config.
        period: epochs between two measurements.
        folder: the run's folder.
        steps_per_epoch: iterations per epoch.

    Attributes:
        name: the value that identifies this monitor's lines.
        board: name of the TensorBoard folder.
    """

    trainer: Trainer
    name: str
    board: str

    def __init__(self, cfg: CfgNode, period: int, folder: Path, steps_per_epoch: int) -> None:
        self.cfg, self.period, self.folder, self.steps_per_epoch = cfg, period, folder, steps_per_epoch
        self._total = steps_per_epoch * cfg.SOLVER.EPOCHS
        self._board: SummaryWriter | None = None

    @abstractmethod
    def measure(self, trainer: Trainer) -> dict[str, float]:
        """The values by name, the same on all processes; every process must call it.

        The encoder is in evaluation mode, on every process with rank 0's running statistics, which are the saved ones.
        """

    @abstractmethod
    def describe_values(self, values: dict[str, float], epoch: float) -> str:
        """The values as text, for the log."""

    def before_train(self) -> None:
        """Measure at the start, or what an interrupted run did not measure."""
        self.catch_up(self.trainer, self.trainer.start_iter)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._is_due(done):
            self._measure(self.trainer, done)

    def after_train(self) -> None:
        if self._board is not None:
            self._board.close()

    def catch_up(self, trainer: Trainer, done: int) -> None:
        """Measure after `done` iterations if due and not in metrics.json yet. Every process must call it."""
        known: list[bool] = comm.all_gather(self.recorded(done) is not None if comm.is_main_process() else False)
        if self._is_due(done) and not known[0]:
            self._measure(trainer, done)

    def recorded(self, done: int) -> dict[str, float] | None:
        """The line of metrics.json that was measured after `done` iterations; None where there is none."""
        file = self.folder / METRICS
        lines = file.read_text().splitlines() if file.exists() else []
        rows: list[dict[str, float]] = [json.loads(line) for line in lines if self.name in line]
        return next((row for row in rows if row.get("epoch") == done / self.steps_per_epoch), None)

    def _is_due(self, done: int) -> bool:
        return done % (self.period * self.steps_per_epoch) == 0 or done == self._total

    def _measure(self, trainer: Trainer, done: int) -> None:
        start, encoder = time.perf_counter(), trainer.method.encoder
        with rank0_buffers(encoder), frozen(encoder):
            values = self.measure(trainer)
        if comm.is_main_process():
            self._write(values, done)
            seconds = time.perf_counter() - start
            _log.info(f"{self.describe_values(values, done / self.steps_per_epoch)} ({seconds:.1f} s)")

    def extractor(self, trainer: Trainer) -> Extractor:
        encoder, engine = trainer.method.encoder, self.cfg.ENGINE
        scaled = partial(normalize, style=self.cfg.AUGMENT.STYLE)
        return Extractor(encoder, feature_width(encoder), scaled, engine.PRECISION, engine.CHANNELS_LAST)

    def _write(self, values: dict[str, float], done: int) -> None:
        iteration = max(done - 1, 0)
        line = {**values, "epoch": done / self.steps_per_epoch, "iteration": iteration}
        with open(self.folder / METRICS, "a") as stream:
            stream.write(json.dumps(line, sort_keys=True) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        if self.cfg.LOG.TENSORBOARD:
            from torch.utils.tensorboard import SummaryWriter

            # A folder of its own: TensorBoard reads only one file at a time in each.
            folder = self.folder / "tensorboard" / self.board
            self._board = self._board or SummaryWriter(folder, purge_step=iteration)
            for name, value in values.items():
                self._board.add_scalar(name, value, iteration)


def labelled_root(cfg: CfgNode, section: str) -> tuple[str, str]:
    """The folder of a monitor's labelled set, and the key that names it, for messages.

    Args:
        cfg: the run's config.
        section: KNN or VALIDATION, below MONITOR.

    Raises:
        UserError: its RESIZE is smaller than the views.
    """
    keys, name = cfg.MONITOR[section], f"MONITOR.{section}"
    if 0 < keys.RESIZE < cfg.DATA.SIZE:
        raise UserError(f"{name}.RESIZE is {keys.RESIZE}; it must be 0 or at least DATA.SIZE, {cfg.DATA.SIZE}")
    return keys.ROOT or cfg.DATA.ROOT, f"{name}.ROOT" if keys.ROOT else f"DATA.ROOT ({name}.ROOT is not set)"


def knn_sets(cfg: CfgNode) -> tuple[LabelledSet, LabelledSet] | None:
    """Training and test images of the MONITOR.KNN keys; None where the monitor is off.

    Raises:
        UserError: a split or a class is missing, or the training split has fewer than K images.
    """
    knn = cfg.MONITOR.KNN
    if not knn.PERIOD:
        return None
    root, key = labelled_root(cfg, "KNN")
    train, test = labelled_sets(root, knn.TRAIN, knn.VAL, key)
    check_k(knn.K, train, "MONITOR.KNN.K")
    return train, test


class KnnMonitor(Monitor):
    """Measures the kNN accuracy of the frozen encoder's features: `knn_top1` in per cent.

    Args:
        cfg: the run's config.
        sets: training images, which vote, and test images.
        folder: the run's folder.
        steps_per_epoch: iterations per epoch.
    """

    name, board = KNN_TOP1, "knn"

    def __init__(self, cfg: CfgNode, sets: tuple[LabelledSet, LabelledSet], folder: Path, steps_per_epoch: int) -> None:
        super().__init__(cfg, cfg.MONITOR.KNN.PERIOD, folder, steps_per_epoch)
        self.sets = sets
        self.view = FixedView(cfg.DATA.SIZE, cfg.MONITOR.KNN.RESIZE)

    def measure(self, trainer: Trainer) -> dict[str, float]:
        knn, extractor = self.cfg.MONITOR.KNN, self.extractor(trainer)
        step = count_progress(sum(map(own_image_count, self.sets)), "kNN features of", "images", trainer.report)
        value = knn_accuracy(
            extractor, *self.sets, self.view, k=knn.K, temperature=knn.T, workers=self.cfg.DATA.WORKERS, step=step
        )
        return {KNN_TOP1: value}

    def describe_values(self, values: dict[str, float], epoch: float) -> str:
        knn = self.cfg.MONITOR.KNN
        return f"kNN after epoch {epoch:.2f}: top-1 {values[KNN_TOP1]:.2f} % (k {knn.K}, T {knn.T:g})"


def check_labels(cfg: CfgNode, index: ImageIndex) -> None:
    """Raise UserError if a method needs classes and the training set has none, or only one."""
    if not needs_labels(cfg.METHOD):
        return
    if index.labels is None or index.classes is None:
        loose = next((name for name in index.files if "/" not in name), None) if index.listed_classes is None else None
        why = f"{loose} in {index.folder} lies in no class folder" if loose else f"{cfg.DATA.ROOT} names none"
        raise UserError(
            f"METHOD {cfg.METHOD} needs each image's class, but {why}; docs/guides/data.md says how to give them"
        )
    if len(index.classes) < 2:
        raise UserError(f"METHOD {cfg.METHOD} needs two classes or more; {index.folder} holds only {index.classes[0]}")


def validation_set(cfg: CfgNode, index: ImageIndex) -> LabelledSet | None:
    """The labelled set of the MONITOR.VALIDATION keys, with the training set's class numbers; None where it is off.

    Raises:
        UserError: the method has no classifier, or the set is missing or has a class that the training set lacks.
    """
    keys = cfg.MONITOR.VALIDATION
    if not keys.PERIOD:
        return None
    if not needs_labels(cfg.METHOD):
        raise UserError(f"MONITOR.VALIDATION.PERIOD is {keys.PERIOD}, but METHOD {cfg.METHOD} has no classifier; set 0")
    root, key = labelled_root(cfg, "VALIDATION")
    found = labelled_set(Path(root).expanduser(), keys.FOLDER, key)
    numbers = {name: number for number, name in enumerate(index.classes or ())}
    unknown = [name for name in found.classes if name not in numbers]
    if unknown:
        raise UserError(f"{key} {found.index.folder}: class {unknown[0]} is not among the training set's")
    number = torch.tensor([numbers[name] for name in found.classes])
    return replace(found, labels=number[found.labels], classes=tuple(index.classes or ()))


class ValidationMonitor(Monitor):
    """Measures the method's classifier: `val_top1` and, with enough classes, `val_top5` in per cent.

    Each image is counted once, by one of the processes. Features are computed in the run's precision, the classifier in
    float32.

    Args:
        cfg: the run's config.
        images: the validation set.
        folder: the run's folder.
        steps_per_epoch: iterations per epoch.
    """

    name, board = VAL_TOP1, "validation"

    def __init__(self, cfg: CfgNode, images: LabelledSet, folder: Path, steps_per_epoch: int) -> None:
        super().__init__(cfg, cfg.MONITOR.VALIDATION.PERIOD, folder, steps_per_epoch)
        self.images = images
        self.view = FixedView(cfg.DATA.SIZE, cfg.MONITOR.VALIDATION.RESIZE)

    def measure(self, trainer: Trainer) -> dict[str, float]:
        """The share of images whose class has the highest score, or one of the five highest."""
        step = count_progress(own_image_count(self.images), "validating", "images", trainer.report)
        shard = extract_shard(self.extractor(trainer), self.images, self.view, self.cfg.DATA.WORKERS, step)
        return {f"val_{name}": value for name, value in accuracy(trainer.method.classifier, shard).items()}

    def describe_values(self, values: dict[str, float], epoch: float) -> str:
        shares = ", ".join(f"{name.removeprefix('val_')} {value:.2f} %" for name, value in values.items())
        return f"validation after epoch {epoch:.2f}: {shares}"
