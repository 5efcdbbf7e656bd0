"""Learning rates as functions of the iteration: nothing to store, nothing to resume."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fvcore.common.config import CfgNode


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then what a subclass makes of the epochs that are left.

    The n warm-up iterations go from `warmup_start` to `peak`. With `ends` "last" the first is a step above the start
    and the last has the peak already; "first": the first is at the start and the peak comes with the iteration after
    the warm-up (SimCLR's model_util.py, BYOL's schedules.py); "both": numpy's linspace, so that the peak comes twice
    (SwAV's main_swav.py). (The SimSiam paper states ten epochs of warm-up from batch 1024 on; that they grow by
    iteration from near 0 is inferred from its references.)

    Args:
        peak: the highest learning rate.
        epochs: E, the length of the run.
        steps_per_epoch: iterations an epoch.
        warmup_epochs: w.
        warmup_start: the rate that the warm-up starts from.
        ends: one of `optim.WARMUP_ENDS`.
        final: the rate that the decay ends at, where it is a cosine.
    """

    peak: float
    epochs: int
    steps_per_epoch: int
    warmup_epochs: int = 0
    warmup_start: float = 0.0
    ends: str = "last"
    final: float = 0.0

    @property
    def warmup(self) -> int:
        """n, the iterations of warm-up."""
        return self.warmup_epochs * self.steps_per_epoch

    def at(self, iteration: int) -> float:
        """The learning rate of an iteration, counted from 0."""
        if iteration >= self.warmup:
            return self.decayed(iteration)
        step, steps = {
            "last": (iteration + 1, self.warmup),
            "first": (iteration, self.warmup),
            "both": (iteration, max(self.warmup - 1, 1)),
        }[self.ends]
        return self.warmup_start + (self.peak - self.warmup_start) * step / steps

    def decayed(self, iteration: int) -> float:
        """The learning rate of an iteration after the warm-up, counted from the run's start."""
        raise NotImplementedError

    def _cosine(self, done: float, total: float) -> float:
        return self.final + (self.peak - self.final) * 0.5 * (1 + math.cos(math.pi * done / total))


class CosineByEpoch(Schedule):
    """Half a cosine that falls once an epoch, as the released SimSiam's does: epoch e of E has peak × ½(1 + cos(πe/E)).

    After w epochs of warm-up it runs over the E − w that are left.
    """

    def decayed(self, iteration: int) -> float:
        """The rate of the iteration's epoch."""
        epoch = iteration // self.steps_per_epoch - self.warmup_epochs
        return self._cosine(epoch, self.epochs - self.warmup_epochs)


class CosineByStep(Schedule):
    """Half a cosine that falls with every iteration (SimCLR, BYOL, SwAV), over those that the warm-up leaves."""

    def decayed(self, iteration: int) -> float:
        """The rate of the iteration itself."""
        return self._cosine(iteration - self.warmup, self.epochs * self.steps_per_epoch - self.warmup)


@dataclass(frozen=True)
class StepsByEpoch(Schedule):
    """The peak, multiplied by `gamma` at each epoch of `steps` (supervised training: 30, 60, 80 and 0.1).

    Args:
        steps: epochs, counted from the run's start.
        gamma: the factor.
    """

    steps: tuple[int, ...] = ()
    gamma: float = 0.1

    def decayed(self, iteration: int) -> float:
        """The rate of the iteration's epoch."""
        epoch = iteration // self.steps_per_epoch
        return self.peak * float(self.gamma ** sum(epoch >= step for step in self.steps))


COSINES = {"cosine_by_epoch": CosineByEpoch, "cosine_by_step": CosineByStep}


def peak_lr(cfg: CfgNode) -> float:
    """The linear scaling rule: SOLVER.BASE_LR × SOLVER.BATCH_SIZE / 256."""
    return cfg.SOLVER.BASE_LR * cfg.SOLVER.BATCH_SIZE / 256


def build_schedule(cfg: CfgNode, steps_per_epoch: int) -> Schedule:
    """The schedule that the SOLVER keys spell."""
    solver = cfg.SOLVER
    warmup = (solver.WARMUP_EPOCHS, solver.WARMUP_START_LR, solver.WARMUP_ENDS)
    run = (peak_lr(cfg), solver.EPOCHS, steps_per_epoch, *warmup)
    if solver.SCHEDULE == "steps":
        return StepsByEpoch(*run, steps=tuple(solver.STEPS), gamma=solver.GAMMA)
    return COSINES[solver.SCHEDULE](*run, final=solver.FINAL_LR)
