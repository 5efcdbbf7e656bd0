"""LARS and LARC: SGD whose steps are scaled layer by layer (arXiv 1708.03888), by timm's `Lars`.

Both multiply a layer's gradient by a trust ratio before SGD's momentum takes it; a tensor whose weights or gradient are
all zero takes an unscaled step. They differ in what is scaled and in the ratio's denominator. As in torch's SGD the
learning rate multiplies the momentum buffer, as it does in BYOL's code and in apex; SimCLR's multiplies each gradient
before it enters the buffer. The two are one while the rate is constant, and differ by what it changes within the
buffer's memory, about ten steps of thousands.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def build_lars(
    groups: Iterable[dict[str, Any]], lr: float, momentum: float, decay: float, trust: float, foreach: bool | None
) -> torch.optim.Optimizer:
    """LARS as SimCLR (lars_optimizer.py) and BYOL (byol/utils/optimizers.py) have it.

    A matrix or a kernel w with gradient g steps along u = g + decay·w, scaled by trust × ‖w‖ / ‖u‖. Biases and the
    weights of batch normalisation, which are vectors, take SGD's step without decay. timm's ratio is apex's, with
    ‖g‖ + decay·‖w‖ below the line; given u for g and no decay of its own it is this one.

    Args:
        groups: parameter groups; each is parted in two, its other entries kept.
        lr: the initial learning rate.
        momentum, decay: SGD's.
        trust: η, the trust coefficient.
        foreach: whether all tensors are treated together; None leaves the choice to timm.
    """
    from timm.optim.lars import Lars  # imports all of timm: seconds that nobody else should wait

    parts = [
        {**group, "params": params, "always_adapt": adapted, "added_decay": decay if adapted else 0.0}
        for group in groups
        for adapted in (True, False)
        if (params := [p for p in group["params"] if (p.ndim > 1) == adapted])
    ]
    optimizer = Lars(parts, lr, momentum=momentum, weight_decay=0.0, trust_coeff=trust, eps=0.0, foreach=foreach)
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
    params: Iterable[Any], lr: float, momentum: float, decay: float, trust: float, foreach: bool | None = None
) -> torch.optim.Optimizer:
    """apex's LARC without clipping around SGD (SwAV; SimSiam's linear evaluation): every tensor is adapted.

    u = g + decay·w is scaled by trust × ‖w‖ / (‖g‖ + decay·‖w‖ + 1e-8), biases and batch normalisation included and
    whether or not there is decay (timm leaves tensors without it alone unless it is told otherwise). Where a gradient
    is all zero apex leaves the decay out, timm does not: a change by lr × decay of the weight.

    Args:
        params: parameters, or groups of them.
        lr, momentum, decay, trust, foreach: as `build_lars` has them.
    """
    from timm.optim.lars import Lars  # as above

    return Lars(
        params,
        lr,
        momentum=momentum,
        weight_decay=decay,
        trust_coeff=trust,
        trust_clip=False,
        always_adapt=True,
        foreach=foreach,
    )
