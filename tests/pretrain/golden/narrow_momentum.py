"""What the golden values of MoCo and BYOL need besides the narrow model: sizes, rates, a queue's start, gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.pretrain.golden import narrow

STEPS, RATE = 8, 0.05
KEYS, KEY_MOMENTUM, TEMPERATURE = 32, 0.9, 0.2
TARGET_MOMENTUM = 0.8
PRED_HIDDEN = 48


def queue() -> torch.Tensor:
    """The queue's start, (KEYS, DIM): rows of unit length."""
    return F.normalize(narrow.normal("queue", (KEYS, narrow.DIM)), dim=1)


def under(prefixes: dict[str, nn.Module]) -> nn.ModuleDict:
    """Modules under the names that weights, gradients and checksums go by."""
    return nn.ModuleDict(prefixes)


def gradients(model: nn.Module) -> dict[str, list[float]]:
    """Sum and norm of each gradient there is, by canonical name."""
    return {
        narrow.canonical(name): [float(p.grad.sum()), float(p.grad.norm())]
        for name, p in sorted(model.named_parameters())
        if p.grad is not None
    }


def sgd(parameters: list[nn.Parameter]) -> torch.optim.SGD:
    """The plain optimiser of all golden runs here: what is compared is the method."""
    return torch.optim.SGD(parameters, RATE, momentum=narrow.MOMENTUM, weight_decay=narrow.WEIGHT_DECAY)
