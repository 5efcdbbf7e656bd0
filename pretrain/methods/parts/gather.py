"""Tensors of all processes together."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def alone() -> bool:
    """Whether there is one process."""
    return not dist.is_initialized() or dist.get_world_size() == 1


@torch.no_grad()
def gathered(x: torch.Tensor) -> torch.Tensor:
    """The processes' tensors one below the other, in rank order; no gradient flows back.

    Args:
        x: (N, …), of the same shape and dtype on all processes. Where there is one process it is returned as it is.
    """
    if alone():
        return x.detach()
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


def with_gradient(x: torch.Tensor) -> torch.Tensor:
    """The processes' tensors one below the other, in rank order; the gradient of each row flows back to its process.

    Every process's loss may depend on every row, so a row's gradient is the sum of theirs. Averaging the parameters'
    gradients over the processes, as DistributedDataParallel does, then gives the gradient of the mean of their losses:
    that of one process with the joined batch.

    Args:
        x: (N, …), of the same shape and dtype on all processes. Where there is one process it is returned as it is.
    """
    if alone():
        return x
    joined: torch.Tensor = _GatherWithGradient.apply(x)
    return joined


def first_row(x: torch.Tensor) -> int:
    """The index of this process's first row among the gathered ones."""
    return dist.get_rank() * len(x) if dist.is_initialized() else 0


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return gathered(x)

    @staticmethod
    def backward(_ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
