"""Momentum encoder, queue of features and shuffling BN, as in MoCo (arXiv 1911.05722)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from pretrain.models.batch_norm import memory_format_of
from ssl_transfer.training.collectives import all_gather, is_distributed

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def momentum_copy(network: ModuleT) -> ModuleT:
    """A copy of a network whose parameters need no gradient; it has its own running statistics."""
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def update_ema(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Exponential moving average θ' ← m·θ' + (1 − m)·θ of every parameter, in place.

    Sources: MoCo, arXiv 1911.05722, equation 2; BYOL, arXiv 2006.07733, equation 1. As in both released codes, buffers
    are not averaged: the running statistics of batch normalization come from the target network's own batches.

    Args:
        target: θ', updated in place.
        online: θ, of the same architecture.
        momentum: m, 0 … 1.
    """
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), 1 - momentum)


class FeatureQueue(nn.Module):
    """First-in-first-out queue of the last `size` features (MoCo, section 3.2); initially random directions.

    Both tensors are in the state dict and equal in all processes: `keys`, (size, dim) float32, rows of unit length, and
    `pointer`, the oldest row, which the next feature replaces. The pointer stays on the device to avoid waiting for it.

    Args:
        size: number of features.
        dim: their width.
    """

    keys: torch.Tensor
    pointer: torch.Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, features: torch.Tensor) -> None:
        """Replace the oldest features by those of all processes, in rank order.

        Args:
            features: (N, dim) of this process, with the same N in all; `size` must be a multiple of all N together.
        """
        new = all_gather(features).to(self.keys.dtype)
        size = len(self.keys)
        rows = (self.pointer + torch.arange(len(new), device=new.device)) % size
        self.keys.index_copy_(0, rows, new)
        self.pointer.copy_((self.pointer + len(new)) % size)


@torch.no_grad()
def forward_with_shuffle_bn(network: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """MoCo's shuffling BN (arXiv 1911.05722, section 3.3): forward pass on shuffled batches, without gradient.

    If each process, or each group, normalizes its own images, a query and its key share their batch statistics, which
    leak the key's identity. So keys are computed on batches that are shuffled between processes, then reordered. A
    single process shuffles its own batch, which has an effect with groups only.

    Args:
        network: maps (N, …) to (N, d).
        x: (N, …) of this process, with the same N in all.

    Returns:
        (N, d), in the order of x.
    """
    if not is_distributed():
        order = torch.randperm(len(x)).to(x.device)
        return network(x[order].contiguous(memory_format=memory_format_of(x)))[torch.argsort(order)]
    order = torch.randperm(len(x) * dist.get_world_size()).to(x.device)
    dist.broadcast(order, src=0)
    shuffled = all_gather(x)[_local(order)].contiguous(memory_format=memory_format_of(x))
    return all_gather(network(shuffled))[_local(torch.argsort(order))]


def _local(rows: torch.Tensor) -> torch.Tensor:
    """This process's part of all rows."""
    return rows.view(dist.get_world_size(), -1)[dist.get_rank()]
