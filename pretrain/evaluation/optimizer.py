"""The classifier's optimiser: LARS as the released linear evaluation uses it, or plain SGD."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from fvcore.common.config import CfgNode


def build_optimizer(parameters: Iterable[torch.nn.Parameter], linear: CfgNode) -> torch.optim.Optimizer:
    """The optimiser that the LINEAR keys spell, at the peak learning rate.

    `lars` is facebookresearch/simsiam's main_lincls.py --lars: apex's LARC without clipping around SGD with momentum,
    every tensor adapted. timm's Lars makes the same steps (tests/pretrain/evaluation/test_larc.py), but leaves tensors
    without weight decay alone unless it is told to adapt always. A tensor whose weights or gradient are all zero, as
    the bias is at first, takes an unscaled step in both.
    """
    lr, momentum, decay = peak_lr(linear), linear.MOMENTUM, linear.WEIGHT_DECAY
    if linear.OPTIMIZER == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=momentum, weight_decay=decay)
    from timm.optim.lars import Lars  # imports all of timm: seconds that nobody else should wait

    return Lars(
        parameters,
        lr,
        momentum=momentum,
        weight_decay=decay,
        trust_coeff=linear.TRUST,
        trust_clip=False,
        always_adapt=True,
    )


def peak_lr(linear: CfgNode) -> float:
    """The linear scaling rule: BASE_LR × BATCH_SIZE / 256."""
    return linear.BASE_LR * linear.BATCH_SIZE / 256
