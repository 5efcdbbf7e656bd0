"""What kinds of images were met: a line of the log at the end of each epoch."""

from __future__ import annotations

import logging

import torch.distributed as dist
from detectron2.engine.train_loop import HookBase

from pretrain.data.decode import CONDITIONS
from pretrain.data.loader import Batches
from pretrain.engine.trainer import Trainer

_log = logging.getLogger(__name__)


class ImageReport(HookBase):
    """Counts, over all processes, the images that are out of the ordinary (docs/guides/data.md).

    Args:
        steps_per_epoch: iterations an epoch.
    """

    trainer: Trainer

    def __init__(self, steps_per_epoch: int) -> None:
        self.steps_per_epoch = steps_per_epoch
        self._steps = 0

    def after_step(self) -> None:
        """Report at an epoch's end what was met since the last report, or since this process took the run up."""
        self._steps += 1
        batches, done = self.trainer.batches, self.trainer.iter + 1
        if done % self.steps_per_epoch or not isinstance(batches, Batches):
            return
        met = batches.met.to(self.trainer.device)
        if dist.is_initialized():
            dist.all_reduce(met)
        found = ", ".join(f"{count} {name}" for count, name in zip(met.tolist(), CONDITIONS, strict=True) if count)
        if found:
            _log.info(f"images of the last {self._steps} iterations: {found} (see docs/guides/data.md)")
        batches.met.zero_()
        self._steps = 0
