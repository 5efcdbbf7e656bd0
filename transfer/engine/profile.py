"""`--profile` on fine-tuning's loop."""

from __future__ import annotations

import logging
from pathlib import Path

from detectron2.engine import HookBase

from common.profiling import Profile

logger = logging.getLogger(__name__)


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
