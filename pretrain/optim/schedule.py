"""Learning rates and momenta as functions of the iteration: there is no state to save or resume."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from fvcore.common.config import CfgNode

WARMUP_ENDS = ("last", "first", "both")
"""Values of SOLVER.WARMUP_ENDS: which ends of the ramp are iterations of the warm-up."""


@dataclass(frozen=True)
class Schedule(ABC):
    """Linear warm-up, then the decay of a subclass over the remaining epochs.

    The n warm-up iterations go from `warmup_start` to `peak`. With `ends` "last", the first one is a step above the
    start and the last one has the peak. "first": the first one is at the start, and the iteration after the warm-up has
    the peak (SimCLR's model_util.py, BYOL's schedules.py). "both": as numpy's linspace, so the peak occurs twice
    (SwAV's main_swav.py). (The SimSiam paper states ten epochs of warm-up from batch 1024 on; inferred from its
    references: the rate grows with each iteration from near 0.)

    Args:
        peak: the highest learning rate.
        epochs: E, the length of the run.
        steps_per_epoch: iterations per epoch.
        warmup_epochs: w.
        warmup_start: learning rate at the start of the warm-up.
        ends: one of `WARMUP_ENDS`.
        final: learning rate at the end of a cosine decay.
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
        """n, the number of warm-up iterations."""
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

    @abstractmethod
    def decayed(self, iteration: int) -> float:
        """The learning rate of an iteration after the warm-up, counted from the run's start."""

    def _cosine(self, done: float, total: float) -> float:
        return self.final + (self.peak - self.final) * 0.5 * (1 + math.cos(math.pi * done / total))


class CosineByEpoch(Schedule):
    """Half a cosine that falls once per epoch, as in the released SimSiam: epoch e of E has peak × ½(1 + cos(πe/E)).

    After w epochs of warm-up it covers the remaining E − w.
    """

    def decayed(self, iteration: int) -> float:
        """The learning rate of the iteration's epoch."""
        epoch = iteration // self.steps_per_epoch - self.warmup_epochs
        return self._cosine(epoch, self.epochs - self.warmup_epochs)


class CosineByStep(Schedule):
    """Half a cosine that falls with every iteration (SimCLR, BYOL, SwAV), over those after the warm-up."""

    def decayed(self, iteration: int) -> float:
        """The learning rate of the iteration."""
        return self._cosine(iteration - self.warmup, self.epochs * self.steps_per_epoch - self.warmup)


@dataclass(frozen=True)
class StepsByEpoch(Schedule):
    """The peak, multiplied by `gamma` at each epoch of `steps` (supervised training: 30, 60, 80 and 0.1).

    Args:
        steps: epochs, counted from the run's start.
        gamma: the decay factor.
    """

    steps: tuple[int, ...] = ()
    gamma: float = 0.1

    def decayed(self, iteration: int) -> float:
        """The learning rate of the iteration's epoch."""
        epoch = iteration // self.steps_per_epoch
        return self.peak * float(self.gamma ** sum(epoch >= step for step in self.steps))


COSINES = {"cosine_by_epoch": CosineByEpoch, "cosine_by_step": CosineByStep}

SCHEDULES = (*COSINES, "steps")
"""Values of SOLVER.SCHEDULE."""


def peak_lr(cfg: CfgNode) -> float:
    """The linear scaling rule: SOLVER.BASE_LR × SOLVER.BATCH_SIZE / 256."""
    return cfg.SOLVER.BASE_LR * cfg.SOLVER.BATCH_SIZE / 256


def build_schedule(cfg: CfgNode, steps_per_epoch: int) -> Schedule:
    """The schedule that the SOLVER keys select."""
    solver = cfg.SOLVER
    common: dict[str, Any] = {
        "peak": peak_lr(cfg),
        "epochs": solver.EPOCHS,
        "steps_per_epoch": steps_per_epoch,
        "warmup_epochs": solver.WARMUP_EPOCHS,
        "warmup_start": solver.WARMUP_START_LR,
        "ends": solver.WARMUP_ENDS,
    }
    if solver.SCHEDULE == "steps":
        return StepsByEpoch(**common, steps=tuple(solver.STEPS), gamma=solver.GAMMA)
    return COSINES[solver.SCHEDULE](**common, final=solver.FINAL_LR)


def cosine_momentum(base: float, iteration: int, total: int) -> float:
    """BYOL's momentum τ of the target network: rises from `base` at the first iteration to 1 at the end of the run.

    τ = 1 − (1 − base)·(cos(πk/K) + 1)/2 (arXiv 2006.07733, section 3.3; deepmind-research byol/utils/schedules.py).

    Args:
        base: τ of the first iteration, 0 … 1.
        iteration: k, from 0; at K and beyond τ is 1.
        total: K, iterations of the run.
    """
    return 1 - (1 - base) * (math.cos(math.pi * min(iteration, total) / total) + 1) / 2
