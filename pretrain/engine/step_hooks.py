"""Hooks around each step: learning rates, the collapse detector, log lines and the stop on a signal."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from detectron2.engine.train_loop import HookBase
from detectron2.utils.events import EventStorage
from fvcore.common.config import CfgNode
from torch.nn.modules.batchnorm import _BatchNorm

from pretrain.data.decode import CONDITIONS
from pretrain.data.loader import BatchLoader
from pretrain.engine.metrics import StepResult
from pretrain.engine.trainer import Trainer
from pretrain.methods.base import Method
from pretrain.optim.optimizer import BASE, set_lr
from pretrain.optim.schedule import Schedule
from ssl_transfer.training.collectives import sum_over_processes
from ssl_transfer.training.hooks import StopOnSignal
from ssl_transfer.training.logs import ProgressLine, describe_eta

_log = logging.getLogger(__name__)


class LearningRates(HookBase):
    """Sets each group's learning rate before a step; logs `lr`, `lr_predictor` and `epoch` after it.

    Args:
        schedule: a function of the iteration.
    """

    trainer: Trainer

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def before_step(self) -> None:
        set_lr(self.trainer.optimizer, self.schedule, self.trainer.iter)

    def after_step(self) -> None:
        rates = {
            "lr" if group["name"] == BASE else f"lr_{group['name']}": group["lr"]
            for group in self.trainer.optimizer.param_groups
        }
        epoch = (self.trainer.iter + 1) / self.schedule.steps_per_epoch
        self.trainer.storage.put_scalars(smoothing_hint=False, epoch=epoch, **rates)


class CollapseDetector(HookBase):
    """Raises the alarm when std has been far below 1/√d for many steps: a warning, and `std_alarm` 1 in the metrics.

    The threshold lies at THRESHOLD of the way from the lowest value that std can take to 1/√d: at a tenth of 1/√d if
    std can fall to 0. Register it before the checkpoint hook, so that a run that it stops keeps the checkpoint before.

    Args:
        dim: d, the width of the embedding.
        keys: MONITOR.COLLAPSE: the threshold, the number of steps, and whether the run ends there, as diverged.
        lowest: the lowest value of std as a share of 1/√d.

    Attributes:
        record: the first alarm (`iteration`, `std`) and the `lowest` std during an alarm; None if there was none.
    """

    trainer: Trainer

    def __init__(self, dim: int, keys: CfgNode, lowest: float = 0.0) -> None:
        self.dim, self.steps, self.stop = dim, keys.STEPS, keys.STOP
        self.share = lowest + (1 - lowest) * keys.THRESHOLD if keys.THRESHOLD else 0.0
        self.record: dict[str, float] | None = None
        self._below = 0

    def after_step(self) -> None:
        """Count the steps below the threshold, and raise the alarm when there are enough.

        Raises:
            Diverged: the alarm is raised and ends the run.
        """
        for result in self.trainer.step_results:
            self._count(result)

    def _count(self, result: StepResult) -> None:
        std = result.values["std"]
        self._below = self._below + 1 if std < self.share / math.sqrt(self.dim) else 0
        raised = self._below >= self.steps
        self.trainer.storage.put_scalar("std_alarm", float(raised), smoothing_hint=False)
        if not raised:
            return
        what = f"std, {std:.3g}, has been below {self.share:.3g} of 1/√{self.dim} for {self._below} steps"
        if self._below == self.steps:
            _log.warning(f"collapse? {what} at iteration {result.iteration}")
        first = self.record or {"iteration": result.iteration, "std": std, "lowest": std}
        self.record = {**first, "lowest": min(first["lowest"], std)}
        if self.stop:
            self.trainer.diverge(what, result)

    def state_dict(self) -> dict[str, Any]:
        return {"below": self._below, "record": self.record}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._below, self.record = state["below"], state["record"]


def lowest_std_share(method: Method, images: int) -> float:
    """The value of std in a complete collapse, as a share of 1/√d: above 0 if batch normalization ends the projector.

    When all samples but one coincide, that one has the channel's unit variance: after normalizing N samples it lies at
    √(N − 1), the others at −1/√(N − 1), in each channel up to sign, which makes std 2√(N − 1)/N of 1/√d.

    Args:
        method: its `projector`, if it has one, computes the embedding.
        images: N, the number of images that batch normalization covers.
    """
    projector = getattr(method, "projector", None)
    if projector is None or not isinstance(list(projector.modules())[-1], _BatchNorm):
        return 0.0
    return 2 * math.sqrt(images - 1) / images


class ImageReport(HookBase):
    """Logs, at each epoch's end, how many unusual images all processes read (docs/guides/data.md).

    Args:
        steps_per_epoch: iterations per epoch.
    """

    trainer: Trainer

    def __init__(self, steps_per_epoch: int) -> None:
        self.steps_per_epoch = steps_per_epoch
        self._steps = 0

    def after_step(self) -> None:
        """Log what was read since the last report, or since the run was started or resumed."""
        self._steps += 1
        batches, done = self.trainer.batches, self.trainer.iter + 1
        if done % self.steps_per_epoch or not isinstance(batches, BatchLoader):
            return
        counts = sum_over_processes(batches.condition_counts.to(self.trainer.device)).tolist()
        found = ", ".join(f"{count} {name}" for count, name in zip(counts, CONDITIONS, strict=True) if count)
        if found:
            _log.info(f"images of the last {self._steps} iterations: {found} (see docs/guides/data.md)")
        batches.condition_counts.zero_()
        self._steps = 0


class StopWithCheckpoint(StopOnSignal):
    """The trainer shares a stop request along with its metrics, and the checkpoint hook saves when it stops.

    Register it after the checkpoint hook.
    """

    trainer: Trainer

    def request_stop(self) -> None:
        self.trainer.stop_requested = True

    def is_stopping(self) -> bool:
        """Whether a process had requested a stop when the last step read began."""
        return self.trainer.stopping


class PretrainingLine(ProgressLine):
    """Epoch and iteration, loss, std (also as a share of 1/√d), learning rates, speed, remaining time.

    Args:
        epochs, iterations: the run's length.
        batch_size: images per step over all processes.
        dim: d.
    """

    def __init__(self, epochs: int, iterations: int, batch_size: int, dim: int) -> None:
        super().__init__(iterations, "loss")
        self.epochs, self.batch_size, self.dim = epochs, batch_size, dim

    def describe(self, storage: EventStorage, now: Mapping[str, float], done: int) -> str:
        share = now["std"] * math.sqrt(self.dim)
        return (
            f"epoch {now['epoch']:.2f}/{self.epochs} · iteration {done}/{self.total} · loss {now['loss']:.4f} · "
            f"std {now['std']:.4f} ({share:.2f} of 1/√{self.dim}) · lr {_format_rates(now)}"
            f"{self._speed(storage)}{describe_eta(storage, self.total - done)}"
        )

    def _speed(self, storage: EventStorage) -> str:
        """Images per second and share of time spent waiting for data, once steps have been timed."""
        if "time" not in storage.histories():
            return ""
        wait = storage.history("data_time_share").median(20)
        return f" · {self.batch_size / storage.history('time').median(20):.1f} images/s · data {wait:.0%}"


def _format_rates(now: Mapping[str, float]) -> str:
    """`0.05`, or `0.05 (predictor 0.1)` where a group of parameters has another."""
    own = [(name.removeprefix("lr_"), value) for name, value in sorted(now.items()) if name.startswith("lr_")]
    others = ", ".join(f"{name} {value:.4g}" for name, value in own)
    return f"{now['lr']:.4g}" + (f" ({others})" if others else "")
