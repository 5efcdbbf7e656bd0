"""A small network in double precision, with batch normalisation of every kind that occurs."""

from __future__ import annotations

import torch
from torch import nn


def small_network() -> nn.Sequential:
    """(N, 3, 6, 6) to (N, 8): with and without an affine, by momentum and by cumulative average."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 8),
        nn.Sequential(nn.BatchNorm1d(8, affine=False, momentum=None)),
    ).double()
    nn.init.uniform_(model[1].weight)
    nn.init.uniform_(model[1].bias)
    return model
