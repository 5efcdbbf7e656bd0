"""SGD as the released SimSiam uses it: weight decay on every trained parameter, the predictor a group of its own."""

from __future__ import annotations

from typing import Any

import torch
from fvcore.common.config import CfgNode

from pretrain.methods.base import Method
from pretrain.optim.schedule import Schedule, peak_lr

BASE, PREDICTOR = "base", "predictor"
"""Names of the parameter groups."""

IMPLEMENTATIONS: dict[str, dict[str, bool]] = {
    "for-loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True, "fused": False},
    "fused": {"foreach": False, "fused": True},
}
"""torch's arguments for each SOLVER.IMPLEMENTATION."""


def param_groups(method: Method, fix_predictor_lr: bool) -> list[dict[str, Any]]:
    """The encoder's and projector's parameters, then the predictor's (where there is one).

    Frozen parameters are left out. A group's `fixed_lr` says that the schedule leaves its rate at the peak; with
    `fix_predictor_lr` that is the predictor's (Table 1 of the paper, "lr not decayed").
    """
    head = [] if method.predictor is None else list(method.predictor.parameters())
    in_head = {id(p) for p in head}
    base = [p for p in method.parameters() if id(p) not in in_head]
    groups = [(BASE, base, False), (PREDICTOR, head, fix_predictor_lr)]
    return [
        {"name": name, "params": [p for p in params if p.requires_grad], "fixed_lr": fixed}
        for name, params, fixed in groups
        if any(p.requires_grad for p in params)
    ]


def build_sgd(method: Method, cfg: CfgNode) -> torch.optim.SGD:
    """SGD with momentum on the method's parameter groups, at the peak learning rate."""
    return torch.optim.SGD(
        param_groups(method, cfg.SOLVER.FIX_PRED_LR),
        lr=peak_lr(cfg),
        momentum=cfg.SOLVER.MOMENTUM,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        **IMPLEMENTATIONS[cfg.SOLVER.IMPLEMENTATION],
    )


def set_lr(optimizer: torch.optim.Optimizer, schedule: Schedule, iteration: int) -> None:
    """Give each group its learning rate of this iteration."""
    for group in optimizer.param_groups:
        group["lr"] = schedule.peak if group["fixed_lr"] else schedule.at(iteration)
