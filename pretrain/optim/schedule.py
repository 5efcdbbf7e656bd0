"""Learning rates as functions of the iteration: nothing to store, nothing to resume."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fvcore.common.config import CfgNode


@dataclass(frozen=True)
class CosineByEpoch:
    """Half a cosine that falls once an epoch, as the released SimSiam's does; linear warm-up before it on request.

    Without warm-up epoch e of E has peak × ½(1 + cos(πe/E)). With w warm-up epochs the rate grows with each iteration
    up to `peak` at the end of epoch w, and the cosine runs over the E − w epochs that are left. (The paper states ten
    epochs of warm-up from batch 1024 on; that they grow by iteration from near 0 is inferred from its references.)

    Args:
        peak: the highest learning rate.
        epochs: E, the length of the run.
        steps_per_epoch: iterations an epoch.
        warmup_epochs: w.
    """

    peak: float
    epochs: int
    steps_per_epoch: int
    warmup_epochs: int = 0

    def at(self, iteration: int) -> float:
        """The learning rate of an iteration, counted from 0."""
        warmup = self.warmup_epochs * self.steps_per_epoch
        if iteration < warmup:
            return self.peak * (iteration + 1) / warmup
        epoch = iteration // self.steps_per_epoch - self.warmup_epochs
        return self.peak * 0.5 * (1 + math.cos(math.pi * epoch / (self.epochs - self.warmup_epochs)))


def peak_lr(cfg: CfgNode) -> float:
    """The linear scaling rule: SOLVER.BASE_LR × SOLVER.BATCH_SIZE / 256."""
    return cfg.SOLVER.BASE_LR * cfg.SOLVER.BATCH_SIZE / 256


def build_schedule(cfg: CfgNode, steps_per_epoch: int) -> CosineByEpoch:
    """The schedule that the SOLVER keys spell."""
    return CosineByEpoch(peak_lr(cfg), cfg.SOLVER.EPOCHS, steps_per_epoch, cfg.SOLVER.WARMUP_EPOCHS)
