"""Hooks of Detectron2's training loop that every trainer of this project uses: stop on a signal, profile some steps."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from ssl_transfer.errors import Preempted
from ssl_transfer.profiling import Profile
from ssl_transfer.training.collectives import sum_over_processes
from ssl_transfer.training.distributed import handle_stop
from ssl_transfer.training.logs import ProgressLine

_log = logging.getLogger(__name__)


class StopOnSignal(HookBase):
    """On SIGTERM, SIGUSR2 or Ctrl-C save after the step and stop: all processes after the same iteration.

    Register it after the hook that writes checkpoints. After the last step, whose checkpoint is written, a single
    process stops at once; several finish the evaluation.

    Args:
        save: writes a checkpoint; not called where another hook has written one.
    """

    def __init__(self, save: Callable[[], None] | None = None) -> None:
        self.save = save
        self.requested = False
        self.trains = True
        self._handlers = contextlib.ExitStack()

    def before_train(self) -> None:
        """Handle the signals (only on the main thread, where Python allows it)."""
        self._handlers.enter_context(handle_stop(self._stop))

    def after_train(self) -> None:
        self._handlers.close()

    def _stop(self) -> None:
        if self.trains or comm.get_world_size() > 1:
            self.request_stop()
        else:
            raise Preempted("all iterations are saved, the evaluation is not done")

    def request_stop(self) -> None:
        """Called when this process receives a signal."""
        self.requested = True

    def is_stopping(self) -> bool:
        """Whether a process received a signal; the same on all processes. A trainer may override how they agree."""
        flag = torch.tensor(float(self.requested), device=next(self.trainer.model.parameters()).device)
        return bool(sum_over_processes(flag) > 0) if comm.get_world_size() > 1 else self.requested

    def after_step(self) -> None:
        """Stop if a process received a signal.

        Raises:
            Preempted: after the checkpoint was written.
        """
        done = self.trainer.iter + 1
        self.trains = done < self.trainer.max_iter
        if self.trains and self.is_stopping():
            if self.save:
                self.save()
            raise Preempted(f"saved after {done} of {self.trainer.max_iter} iterations")


class ShowProgress(HookBase):
    """Draws the progress line after each step."""

    def __init__(self, line: ProgressLine) -> None:
        self.line = line

    def after_step(self) -> None:
        self.line.draw()


class ProfileSteps(HookBase):
    """Profile some steps of the main process (`--profile`). Register it first: then no other hook's time is included.

    Args:
        folder: the run's folder.
        steps: how many steps.
        batches: the object and the name of its attribute that holds the iterator of batches; called before each step.
    """

    def __init__(self, folder: Path, steps: int, batches: Callable[[], tuple[Any, str]]) -> None:
        self.folder, self.steps, self.batches = folder, steps, batches
        self.profile: Profile | None = None

    def before_train(self) -> None:
        """Create the profile; recording starts after the warm-up."""
        device = next(self.trainer.model.parameters()).device
        self.profile = Profile(self.folder, self.steps, device, _log.info)

    def before_step(self) -> None:
        if self.profile is not None:
            self.profile.before_step(self.trainer.iter, self.trainer.model, *self.batches())

    def after_step(self) -> None:
        if self.profile is not None:
            self.profile.after_step(self.trainer.iter)

    def after_train(self) -> None:
        if self.profile is not None:
            self.profile.abandon()
