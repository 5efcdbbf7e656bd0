"""Optimizers: SGD as the released SimSiam uses it, and LARS and LARC (arXiv 1708.03888) by timm's `Lars`.

LARS and LARC multiply a layer's gradient by a trust ratio before SGD with momentum uses it; a tensor whose weights or
gradient are all zero takes an unscaled step. They differ in which tensors are scaled and in the ratio's denominator. As
in torch's SGD, the learning rate multiplies the momentum buffer, as in BYOL's code and in apex; in SimCLR's it
multiplies each gradient before it enters the buffer. Both are equal at a constant rate, and differ by the change of the
rate within the buffer's memory, about ten steps of thousands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from fvcore.common.config import CfgNode
from torch import nn

from pretrain.optim.schedule import Schedule, peak_lr

OPTIMIZERS = ("sgd", "lars", "larc")
"""Values of SOLVER.OPTIMIZER."""

BASE, PREDICTOR = "base", "predictor"
"""Names of the parameter groups."""

IMPLEMENTATIONS: dict[str, dict[str, bool]] = {
    "for-loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True, "fused": False},
    "fused": {"foreach": False, "fused": True},
}
"""torch's arguments for each value of SOLVER.OPTIMIZER_IMPL."""


class ModelWithPredictor(Protocol):
    """A model whose predictor, if it has one, forms a parameter group of its own."""

    predictor: nn.Module | None

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters."""


def build_optimizer(model: ModelWithPredictor, cfg: CfgNode) -> torch.optim.Optimizer:
    """The optimizer that SOLVER.OPTIMIZER selects, of the trained parameters, at the peak learning rate."""
    solver = cfg.SOLVER
    if solver.OPTIMIZER == "sgd":
        return build_sgd(model, cfg)
    build = build_lars if solver.OPTIMIZER == "lars" else build_larc
    return build(
        param_groups(model, solver.FIX_PRED_LR),
        peak_lr(cfg),
        momentum=solver.MOMENTUM,
        decay=solver.WEIGHT_DECAY,
        eta=solver.LARS_ETA,
        foreach=IMPLEMENTATIONS[solver.OPTIMIZER_IMPL]["foreach"],
    )


def param_groups(model: ModelWithPredictor, fix_predictor_lr: bool) -> list[dict[str, Any]]:
    """The encoder's and projector's trained parameters, then the predictor's (if there is one).

    The schedule skips groups with `fixed_lr`; with `fix_predictor_lr` that is the predictor's group (Table 1 of the
    paper, "lr not decayed").
    """
    head = [] if model.predictor is None else list(model.predictor.parameters())
    in_head = {id(p) for p in head}
    base = [p for p in model.parameters() if id(p) not in in_head]
    groups = [(BASE, base, False), (PREDICTOR, head, fix_predictor_lr)]
    return [
        {"name": name, "params": [p for p in params if p.requires_grad], "fixed_lr": fixed}
        for name, params, fixed in groups
        if any(p.requires_grad for p in params)
    ]


def build_sgd(model: ModelWithPredictor, cfg: CfgNode) -> torch.optim.SGD:
    """SGD with momentum; weight decay applies to every trained parameter."""
    return torch.optim.SGD(
        param_groups(model, cfg.SOLVER.FIX_PRED_LR),
        lr=peak_lr(cfg),
        momentum=cfg.SOLVER.MOMENTUM,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        **IMPLEMENTATIONS[cfg.SOLVER.OPTIMIZER_IMPL],
    )


def set_lr(optimizer: torch.optim.Optimizer, schedule: Schedule, iteration: int) -> None:
    """Set each parameter group's learning rate for an iteration."""
    for group in optimizer.param_groups:
        group["lr"] = schedule.peak if group["fixed_lr"] else schedule.at(iteration)


def build_lars(
    groups: Iterable[dict[str, Any]], lr: float, *, momentum: float, decay: float, eta: float, foreach: bool | None
) -> torch.optim.Optimizer:
    """LARS as in SimCLR (lars_optimizer.py) and BYOL (byol/utils/optimizers.py).

    A matrix or kernel w with gradient g steps along u = g + decay·w, scaled by eta × ‖w‖ / ‖u‖. Vectors, which are
    biases and weights of batch normalization, take SGD's step without decay. timm's ratio is apex's, with the
    denominator ‖g‖ + decay·‖w‖; given u as gradient and no decay it equals this one.

    Args:
        groups: parameter groups; each is split in two, its other entries are kept.
        lr: initial learning rate.
        momentum: SGD's momentum.
        decay: weight decay.
        eta: η, the trust coefficient.
        foreach: whether all tensors are updated together; None lets timm decide.
    """
    from timm.optim.lars import Lars  # importing timm takes seconds

    parts = [
        {**group, "params": params, "always_adapt": adapted, "added_decay": decay if adapted else 0.0}
        for group in groups
        for adapted in (True, False)
        if (params := [p for p in group["params"] if (p.ndim > 1) == adapted])
    ]
    optimizer = Lars(parts, lr, momentum=momentum, weight_decay=0.0, trust_coeff=eta, eps=0.0, foreach=foreach)
    optimizer.register_step_pre_hook(_add_decay)
    return optimizer


@torch.no_grad()
def _add_decay(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
    """g ← g + decay·w."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if group["added_decay"] and p.grad is not None:
                p.grad.add_(p, alpha=group["added_decay"])


def build_larc(
    params: Iterable[Any], lr: float, *, momentum: float, decay: float, eta: float, foreach: bool | None = None
) -> torch.optim.Optimizer:
    """apex's LARC without clipping around SGD (SwAV; SimSiam's linear evaluation): every tensor is scaled.

    u = g + decay·w is scaled by eta × ‖w‖ / (‖g‖ + decay·‖w‖ + 1e-8), for biases and batch normalization too, with or
    without decay (timm's default skips tensors without decay). If a gradient is all zero, apex skips the decay and timm
    does not: the weight differs by lr × decay of itself.

    Args:
        params: parameters, or groups of them.
        lr, momentum, decay, eta, foreach: see `build_lars`.
    """
    from timm.optim.lars import Lars  # as above

    return Lars(
        params,
        lr,
        momentum=momentum,
        weight_decay=decay,
        trust_coeff=eta,
        trust_clip=False,
        always_adapt=True,
        foreach=foreach,
    )
