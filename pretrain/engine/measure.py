"""What is measured on a labelled set every few epochs: when it is due, and where its values are written."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
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
from pretrain.evaluation.features import Extractor, feature_width

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_log = logging.getLogger(__name__)


def labelled_root(cfg: CfgNode, section: str) -> tuple[str, str]:
    """Where a measurement's labelled set lies, and the key that says so, for messages.

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


class Measurement(HookBase):
    """Measures before the first step, every `period` epochs and at the end.

    The run is the same with and without it: a subclass touches no weight, running statistic, mode or random number.
    Register it after the checkpoints' hook: then a kill while it measures loses nothing, and the resumed run measures
    what is missing. The values are a line of their own in metrics.json, with `epoch` and `iteration`, the last one done
    (0 before the first).

    Args:
        cfg: the run's config.
        period: epochs between two measurements.
        folder: the run's.
        steps_per_epoch: iterations an epoch.

    Attributes:
        name: of the value that says whether a line is this measurement's.
        board: the TensorBoard folder's.
    """

    trainer: Trainer
    name: str
    board: str

    def __init__(self, cfg: CfgNode, period: int, folder: Path, steps_per_epoch: int) -> None:
        self.cfg, self.period, self.folder, self.steps_per_epoch = cfg, period, folder, steps_per_epoch
        self._total = steps_per_epoch * cfg.SOLVER.EPOCHS
        self._board: SummaryWriter | None = None

    def measure(self, trainer: Trainer) -> dict[str, float]:
        """The values by name, the same on all processes, who all call it."""
        raise NotImplementedError

    def said(self, values: dict[str, float], epoch: float) -> str:
        """The values in words, for the log."""
        raise NotImplementedError

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
        known: list[bool] = comm.all_gather(self.recorded(done) is not None if comm.is_main_process() else False)
        if self._due(done) and not known[0]:
            self._measure(trainer, done)

    def recorded(self, done: int) -> dict[str, float] | None:
        """The line of metrics.json that was measured after `done` iterations; None where there is none."""
        file = self.folder / METRICS
        lines = file.read_text().splitlines() if file.exists() else []
        rows: list[dict[str, float]] = [json.loads(line) for line in lines if self.name in line]
        return next((row for row in rows if row.get("epoch") == done / self.steps_per_epoch), None)

    def _due(self, done: int) -> bool:
        return done % (self.period * self.steps_per_epoch) == 0 or done == self._total

    def _measure(self, trainer: Trainer, done: int) -> None:
        start = time.perf_counter()
        values = self.measure(trainer)
        if comm.is_main_process():
            self._write(values, done)
            spent = time.perf_counter() - start
            _log.info(f"{self.said(values, done / self.steps_per_epoch)} ({spent:.1f} s)")

    def extractor(self, trainer: Trainer) -> Extractor:
        """From images to the encoder's features, in the run's precision and layout."""
        encoder, engine = trainer.method.encoder, self.cfg.ENGINE
        return Extractor(encoder, feature_width(encoder), normalise, engine.PRECISION, engine.CHANNELS_LAST)

    def progress(self, total: int, what: str) -> Callable[[int], None]:
        """Told of so many more images done, of this process's `total`; the main process says how far it is."""
        return Progress(total, what).step if comm.is_main_process() else lambda _: None

    def _write(self, values: dict[str, float], done: int) -> None:
        iteration = max(done - 1, 0)
        line = {**values, "epoch": done / self.steps_per_epoch, "iteration": iteration}
        with open(self.folder / METRICS, "a") as stream:
            stream.write(json.dumps(line, sort_keys=True) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        if self.cfg.LOG.TENSORBOARD:
            from torch.utils.tensorboard import SummaryWriter

            # A folder of its own: TensorBoard reads but one file at a time in each.
            place = self.folder / "tensorboard" / self.board
            self._board = self._board or SummaryWriter(place, purge_step=iteration)
            for name, value in values.items():
                self._board.add_scalar(name, value, iteration)
