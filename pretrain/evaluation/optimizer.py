"""The classifier's optimiser: LARS as the released linear evaluation uses it, or plain SGD."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from fvcore.common.config import CfgNode

from pretrain.optim.lars import build_larc


def build_optimizer(parameters: Iterable[torch.nn.Parameter], linear: CfgNode) -> torch.optim.Optimizer:
    """The optimiser that the LINEAR keys spell, at the peak learning rate.

    `lars` is facebookresearch/simsiam's main_lincls.py --lars: apex's LARC without clipping around SGD with momentum,
    every tensor adapted (tests/pretrain/evaluation/test_larc.py). The bias, all zero at first, takes an unscaled step
    then.
    """
    lr, momentum, decay = peak_lr(linear), linear.MOMENTUM, linear.WEIGHT_DECAY
    if linear.OPTIMIZER == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=momentum, weight_decay=decay)
    return build_larc(parameters, lr, momentum, decay, linear.TRUST)


def peak_lr(linear: CfgNode) -> float:
    """The linear scaling rule: BASE_LR × BATCH_SIZE / 256."""
    return linear.BASE_LR * linear.BATCH_SIZE / 256
