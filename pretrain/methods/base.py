"""What the engine asks of a method."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torchvision.models import ResNet


class Output(NamedTuple):
    """What a method returns for a batch.

    Attributes:
        loss: scalar, the mean over this process's samples.
        embedding: (N, d), the first views' output that the collapse monitor watches; no gradient.
    """

    loss: torch.Tensor
    embedding: torch.Tensor


class Method(nn.Module):
    """A network and its loss: `forward(view1, view2)` of two float batches (N, 3, H, W) gives an `Output`.

    Attributes:
        encoder: the online encoder, whose tensors become the backbone file.
        predictor: the head whose learning rate SOLVER.FIX_PRED_LR keeps constant; None where a method has none.
        dim: d, the width of `Output.embedding`.
    """

    encoder: ResNet
    predictor: nn.Module | None
    dim: int

    def forward(self, x1: torch.Tensor, x2: torch.Tensor) -> Output:
        """The method's loss on two views."""
        raise NotImplementedError


def full_precision(x: torch.Tensor) -> torch.Tensor:
    """A half-precision tensor as float32; others as they are. Losses are computed outside autocast's formats."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
