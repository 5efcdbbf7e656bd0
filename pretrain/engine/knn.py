"""The kNN monitor: how well the frozen encoder's features tell classes apart, every few epochs."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from detectron2.engine.train_loop import HookBase
from detectron2.utils import comm
from fvcore.common.config import CfgNode

from common.console import Progress
from common.errors import UserError
from pretrain.data.preprocessing import normalise
from pretrain.engine.trainer import Trainer
from pretrain.engine.writers import METRICS
from pretrain.evaluation.data import FixedView, LabelledSet, labelled_sets
from pretrain.evaluation.features import Extractor, feature_width, frozen, own_image_count
from pretrain.evaluation.knn import check_k, knn_accuracy

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

NAME = "knn_top1"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bank:
    """What the monitor measures on: the training images vote, the test images are asked for."""

    train: LabelledSet
    test: LabelledSet


def monitored_sets(cfg: CfgNode) -> Bank | None:
    """The labelled set of the MONITOR.KNN keys; None where the monitor is off.

    Raises:
        UserError: a split or a class is missing, or the training split has fewer than K images.
    """
    knn = cfg.MONITOR.KNN
    if not knn.PERIOD:
        return None
    said_by = "MONITOR.KNN.ROOT" if knn.ROOT else "DATA.ROOT (MONITOR.KNN.ROOT is not set)"
    if 0 < knn.RESIZE < cfg.DATA.SIZE:
        raise UserError(f"MONITOR.KNN.RESIZE is {knn.RESIZE}; it must be 0 or at least DATA.SIZE, {cfg.DATA.SIZE}")
    train, test = labelled_sets(knn.ROOT or cfg.DATA.ROOT, knn.TRAIN, knn.VAL, said_by)
    check_k(knn.K, train, "MONITOR.KNN.K")
    return Bank(train, test)


class KnnMonitor(HookBase):
    """Measures kNN accuracy before the first step, every PERIOD epochs and at the end.

    The run is the same with and without it: no weight, running statistic, mode or random number is touched. Register it
    after the checkpoints' hook: then a kill while it measures loses nothing, and the resumed run measures what is
    missing. Each value is a line of its own in metrics.json: `knn_top1` in per cent, `epoch` and `iteration`, the last
    one done (0 before the first).

    Args:
        cfg: the run's config.
        bank: what it measures on.
        folder: the run's.
        steps_per_epoch: iterations an epoch.
    """

    trainer: Trainer

    def __init__(self, cfg: CfgNode, bank: Bank, folder: Path, steps_per_epoch: int) -> None:
        self.cfg, self.bank, self.folder, self.steps_per_epoch = cfg, bank, folder, steps_per_epoch
        self.view = FixedView(cfg.DATA.SIZE, cfg.MONITOR.KNN.RESIZE)
        self._total = steps_per_epoch * cfg.SOLVER.EPOCHS
        self._board: SummaryWriter | None = None

    def before_train(self) -> None:
        """Measure what a run that starts or goes on here lacks."""
        self.catch_up(self.trainer, self.trainer.start_iter)

    def after_step(self) -> None:
        """Measure where it is due."""
        done = self.trainer.iter + 1
        if self._due(done):
            self._measure(self.trainer, done)

    def after_train(self) -> None:
        """Close the TensorBoard file."""
        if self._board is not None:
            self._board.close()

    def catch_up(self, trainer: Trainer, done: int) -> None:
        """Measure after `done` iterations if that is due and metrics.json does not have it. All processes call it."""
        recorded: list[bool] = comm.all_gather(self._recorded(done) if comm.is_main_process() else False)
        if self._due(done) and not recorded[0]:
            self._measure(trainer, done)

    def _due(self, done: int) -> bool:
        return done % (self.cfg.MONITOR.KNN.PERIOD * self.steps_per_epoch) == 0 or done == self._total

    def _recorded(self, done: int) -> bool:
        file = self.folder / METRICS
        lines = file.read_text().splitlines() if file.exists() else []
        return any(json.loads(line).get("epoch") == done / self.steps_per_epoch for line in lines if NAME in line)

    def _measure(self, trainer: Trainer, done: int) -> None:
        start, knn, engine = time.perf_counter(), self.cfg.MONITOR.KNN, self.cfg.ENGINE
        encoder = trainer.method.encoder
        width = feature_width(encoder)
        extractor = Extractor(encoder, width, normalise, engine.PRECISION, engine.CHANNELS_LAST)
        with frozen(encoder):
            value = knn_accuracy(
                extractor,
                self.bank.train,
                self.bank.test,
                self.view,
                knn.K,
                knn.T,
                self.cfg.DATA.WORKERS,
                self._progress(),
            )
        if comm.is_main_process():
            self._write(value, done)
            spent = time.perf_counter() - start
            epoch = done / self.steps_per_epoch
            _log.info(f"kNN after epoch {epoch:.2f}: top-1 {value:.2f} % (k {knn.K}, T {knn.T:g}; {spent:.1f} s)")

    def _progress(self) -> Callable[[int], None]:
        if not comm.is_main_process():
            return lambda _: None
        total = own_image_count(self.bank.train) + own_image_count(self.bank.test)
        return Progress(total, "kNN features, images").step

    def _write(self, value: float, done: int) -> None:
        iteration = max(done - 1, 0)
        line = {NAME: value, "epoch": done / self.steps_per_epoch, "iteration": iteration}
        with open(self.folder / METRICS, "a") as stream:
            stream.write(json.dumps(line, sort_keys=True) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        if self.cfg.LOG.TENSORBOARD:
            from torch.utils.tensorboard import SummaryWriter

            # A folder of its own: TensorBoard reads but one file at a time in each.
            self._board = self._board or SummaryWriter(self.folder / "tensorboard" / "knn", purge_step=iteration)
            self._board.add_scalar(NAME, value, iteration)
