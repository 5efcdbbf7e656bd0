"""The trial's own hooks: checkpoints and the time of training."""

from __future__ import annotations

import time
from typing import Any

from detectron2.engine import HookBase

from transfer.engine.trial_folder import TrialCheckpoints


class WriteCheckpoints(HookBase):
    """Write a checkpoint every `period` iterations, and the final one after the last.

    Args:
        checkpoints: of the trial's folder.
        period: iterations between two of them; 0: only the final one.
    """

    def __init__(self, checkpoints: TrialCheckpoints, period: int) -> None:
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


class Stopwatch(HookBase):
    """Wall-clock time of all steps, over all resumed parts. Register it first: then no other hook's time is included.

    Attributes:
        seconds: in steps, data loading included; hooks not.
        iterations: number of these steps.
    """

    def __init__(self) -> None:
        self.seconds, self.iterations = 0.0, 0
        self._start = 0.0

    def before_step(self) -> None:
        """Start."""
        self._start = time.perf_counter()

    def after_step(self) -> None:
        """Stop."""
        self.seconds += time.perf_counter() - self._start
        self.iterations += 1

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"seconds": self.seconds, "iterations": self.iterations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.seconds, self.iterations = float(state["seconds"]), int(state["iterations"])
