"""The narrow classifier, labels and rates behind linear evaluation's golden values: the same for original and ours."""

from __future__ import annotations

import torch
from torch import nn

from tests.pretrain.golden import narrow

CLASSES = 10


def base_lr(optimizer: str) -> float:
    """Of a batch of 256: peaks of 2 for LARS, near the recipe's 1.6, and 0.1 for SGD."""
    return {"lars": 64.0, "sgd": 3.2}[optimizer]


def model() -> nn.Module:
    """The narrow ResNet in float64 with a classifier: weights ~ N(0, 0.01), bias 0."""
    made = narrow.NarrowResNet(CLASSES, zero_init_residual=False).double()
    narrow.fill(made)
    with torch.no_grad():
        made.fc.weight.copy_(0.01 * narrow.WIDTH**0.5 * made.fc.weight)
        made.fc.bias.zero_()
    return made


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A step's images and labels."""
    return narrow.images(step)[0], (torch.arange(narrow.BATCH) * 7 + step) % CLASSES


def probes(classifier: nn.Linear) -> list[float]:
    """The bias, and the weights' sum and norm."""
    weight = classifier.weight.detach()
    return [*classifier.bias.detach().tolist(), float(weight.sum()), float(weight.norm())]
