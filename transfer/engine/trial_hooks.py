"""The trial's own hooks: checkpoints, a stop on a signal, the time of training, and `--profile`."""

from __future__ import annotations

import logging
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from common.errors import Preempted
from common.profiling import Profile
from transfer.engine.checkpoint import Checkpoints

logger = logging.getLogger(__name__)


class Checkpointing(HookBase):
    """Write a checkpoint every `period` iterations, and the final one after the last.

    Args:
        checkpoints: where they go.
        period: iterations between two of them.
    """

    def __init__(self, checkpoints: Checkpoints, period: int) -> None:
        self.checkpoints, self.period = checkpoints, period

    def after_step(self) -> None:
        """Save where a save is due."""
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter:
            self.checkpoints.save_final(self.trainer.detector.state_dict(), self.trainer.iter)
        elif self.period > 0 and done % self.period == 0:
            self.save()

    def save(self) -> None:
        """Save a checkpoint to resume from."""
        trainer = self.trainer
        self.checkpoints.save(trainer.detector.state_dict(), trainer.state_dict(), trainer.iter)


class StopOnSignal(HookBase):
    """On SIGTERM finish the step, save, and stop: all ranks at the same iteration.

    Args:
        checkpointing: what saves.
    """

    def __init__(self, checkpointing: Checkpointing) -> None:
        self.checkpointing = checkpointing
        self.asked = False
        self._before: Any = None

    def before_train(self) -> None:
        """Listen."""
        self._before = signal.signal(signal.SIGTERM, self._note)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True

    def after_step(self) -> None:
        """Stop when any rank was asked to.

        Raises:
            Preempted: after the checkpoint.
        """
        done = self.trainer.iter + 1
        if done < self.trainer.max_iter and self._any_asked():
            self.checkpointing.save()
            raise Preempted(f"checkpoint after iteration {self.trainer.iter}")

    def after_train(self) -> None:
        """Listen no longer."""
        signal.signal(signal.SIGTERM, self._before)

    def _any_asked(self) -> bool:
        if comm.get_world_size() == 1:
            return self.asked
        device = next(self.trainer.detector.parameters()).device
        flag = torch.tensor(float(self.asked), device=device)
        torch.distributed.all_reduce(flag)
        return bool(flag > 0)


class Stopwatch(HookBase):
    """Wall-clock time of all steps, over every time the trial was taken up.

    Attributes:
        seconds: in steps, data loading included; hooks not.
        iterations: how many steps that were.
    """

    def __init__(self) -> None:
        self.seconds, self.iterations = 0.0, 0
        self._start = 0.0

    def before_step(self) -> None:
        """Start."""
        self._start = time.perf_counter()

    def after_step(self) -> None:
        """Stop. To be the first hook, so that no other's time counts."""
        self.seconds += time.perf_counter() - self._start
        self.iterations += 1

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"seconds": self.seconds, "iterations": self.iterations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.seconds, self.iterations = float(state["seconds"]), int(state["iterations"])


class Profiling(HookBase):
    """Profiles some steps of rank 0. To be the first hook, so that no other's time is in them.

    Args:
        folder: the trial's folder.
        steps: how many.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps
        self.profile: Profile | None = None

    def before_train(self) -> None:
        """Nothing is profiled yet."""
        device = next(self.trainer.detector.parameters()).device
        self.profile = Profile(self.folder, self.steps, device, logger.info)

    def before_step(self) -> None:
        """Mark the step's parts where it is one of those."""
        if self.profile is None:
            return
        stepper = self.trainer.stepper
        assert stepper._data_loader_iter is not None  # asking for it makes it, in _data_loader_iter_obj
        self.profile.before_step(self.trainer.iter, self.trainer.model, stepper, "_data_loader_iter_obj")

    def after_step(self) -> None:
        """All is as it was."""
        if self.profile is not None:
            self.profile.after_step(self.trainer.iter)

    def after_train(self) -> None:
        """However it ended."""
        if self.profile is not None:
            self.profile.abandon()
