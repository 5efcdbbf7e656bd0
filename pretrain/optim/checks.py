"""What the optimiser's and the schedule's keys may be; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from fvcore.common.config import CfgNode

from common.config import value_of
from common.errors import UserError
from pretrain.optim import OPTIMIZERS, SCHEDULES, WARMUP_ENDS
from pretrain.optim.schedule import peak_lr
from pretrain.rules import Rule, must_be_named, must_hold, must_keep_default

NAMES = {"SOLVER.OPTIMIZER": OPTIMIZERS, "SOLVER.SCHEDULE": SCHEDULES, "SOLVER.WARMUP_ENDS": WARMUP_ENDS}


def _ascending(epochs: Sequence[int]) -> bool:
    return all(type(epoch) is int and epoch > 0 for epoch in epochs) and list(epochs) == sorted(set(epochs))


RULES: tuple[Rule, ...] = (
    ("SOLVER.TRUST", lambda v: v > 0, "above 0"),
    ("SOLVER.FINAL_LR SOLVER.WARMUP_START_LR", lambda v: v >= 0, "0 or more"),
    ("SOLVER.STEPS", _ascending, "epochs in ascending order, such as [30, 60, 80]"),
    ("SOLVER.GAMMA", lambda v: 0 < v < 1, "above 0 and below 1"),
)


def check(cfg: CfgNode) -> None:
    """Raise UserError for a value that cannot be, or that the other keys would leave unread."""
    solver = cfg.SOLVER
    must_be_named(cfg, NAMES)
    must_hold(cfg, RULES)
    if solver.OPTIMIZER == "sgd":
        must_keep_default(cfg, ["SOLVER.TRUST"], _unread("SOLVER.OPTIMIZER sgd", "lars and larc do"))
    elif solver.IMPLEMENTATION == "fused":
        raise UserError(
            f"SOLVER.IMPLEMENTATION is 'fused', which SOLVER.OPTIMIZER {solver.OPTIMIZER} has not; set foreach"
        )
    if solver.SCHEDULE == "steps":
        must_keep_default(cfg, ["SOLVER.FINAL_LR"], _unread("SOLVER.SCHEDULE steps", "the cosines do"))
        _check_steps(cfg)
    else:
        said = _unread(f"SOLVER.SCHEDULE {solver.SCHEDULE}", "steps does")
        must_keep_default(cfg, ["SOLVER.STEPS", "SOLVER.GAMMA"], said)
    for key in ("SOLVER.FINAL_LR", "SOLVER.WARMUP_START_LR"):
        if value_of(cfg, key) > peak_lr(cfg):
            raise UserError(f"{key} is {value_of(cfg, key):g}; the peak learning rate is less, {peak_lr(cfg):g}")
    if not solver.WARMUP_EPOCHS:
        said = "with SOLVER.WARMUP_EPOCHS 0 nothing reads it: leave it at {default!r}"
        must_keep_default(cfg, ["SOLVER.WARMUP_START_LR", "SOLVER.WARMUP_ENDS"], said)


def _unread(by: str, reader: str) -> str:
    return f"{by} does not read it ({reader}): leave it at {{default!r}}"


def _check_steps(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    if not solver.STEPS:
        raise UserError("SOLVER.STEPS is empty; SOLVER.SCHEDULE steps needs epochs, such as [30, 60, 80]")
    if solver.STEPS[-1] >= solver.EPOCHS:
        raise UserError(f"SOLVER.STEPS ends at {solver.STEPS[-1]}; it must be below SOLVER.EPOCHS, {solver.EPOCHS}")
    if solver.STEPS[0] < solver.WARMUP_EPOCHS:
        raise UserError(f"SOLVER.STEPS begins at {solver.STEPS[0]}, within SOLVER.WARMUP_EPOCHS {solver.WARMUP_EPOCHS}")
