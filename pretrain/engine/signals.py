"""A request to leave: SIGTERM or SIGUSR2 ends the run at the next step, after a checkpoint, on all processes."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from detectron2.engine.train_loop import HookBase

from common.errors import Preempted
from pretrain.engine.trainer import Trainer

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
"""SIGTERM: a scheduler or an operator; SIGUSR2: what submitit asks Slurm to send before a job's time is up."""


class StopOnSignal(HookBase):
    """Turns a signal into a wish to stop that the trainer shares, and leaves once the checkpoint is written.

    Register it after the checkpoints' hook. A stop that comes with the last step lets the run finish.
    """

    trainer: Trainer

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}

    def before_train(self) -> None:
        """Take over the signals (which Python allows the main thread alone)."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    def after_train(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def after_step(self) -> None:
        """Leave where all processes know that one of them was asked to."""
        done = self.trainer.iter + 1
        if self.trainer.stopping and done < self.trainer.max_iter:
            raise Preempted(f"saved after {done} of {self.trainer.max_iter} iterations, --resume continues")

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.trainer.stop_wanted = True
