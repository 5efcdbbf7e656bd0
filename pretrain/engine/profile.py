"""`--profile` on pre-training's loop."""

from __future__ import annotations

import logging
from pathlib import Path

from detectron2.engine.train_loop import HookBase

from common.profiling import Profile
from pretrain.engine.trainer import Trainer

_log = logging.getLogger(__name__)


class Profiling(HookBase):
    """Profiles some steps of the main process. To be the first hook, so that no other's time is in them.

    Args:
        folder: the run's folder.
        steps: how many.
    """

    trainer: Trainer

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps
        self.profile: Profile | None = None

    def before_train(self) -> None:
        """Nothing is profiled yet."""
        self.profile = Profile(self.folder, self.steps, self.trainer.device, _log.info)

    def before_step(self) -> None:
        """Mark the step's parts where it is one of those."""
        if self.profile is not None:
            self.profile.before_step(self.trainer.iter, self.trainer.model, self.trainer, "batches")

    def after_step(self) -> None:
        """All is as it was."""
        if self.profile is not None:
            self.profile.after_step(self.trainer.iter)

    def after_train(self) -> None:
        """However it ended."""
        if self.profile is not None:
            self.profile.abandon()
