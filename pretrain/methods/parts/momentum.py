"""The momentum encoder: a network that is never trained and follows a trained one."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def untrained_copy(network: ModuleT) -> ModuleT:
    """A copy of a network, equal to it so far, whose parameters take no gradient; running statistics are its own."""
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """θ' ← m·θ' + (1 − m)·θ for every parameter.

    Sources: MoCo, arXiv 1911.05722, equation 2; BYOL, arXiv 2006.07733, equation 1.

    Buffers are left alone, as in the released codes of both: the running statistics of batch normalisation come from
    the batches that the target network itself has seen.

    Args:
        target: changed in place.
        online: of the same architecture.
        momentum: m, 0 … 1.
    """
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), 1 - momentum)
