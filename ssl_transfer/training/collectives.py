"""Collective operations on tensors and values. With a single process each of them is the identity."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ssl_transfer.errors import UserError, storage_error
from ssl_transfer.writer_lock import WriterLock

T = TypeVar("T")


def is_distributed() -> bool:
    """Whether there is more than one process."""
    return comm.get_world_size() > 1


def sum_over_processes(x: torch.Tensor) -> torch.Tensor:
    """Sum `x` over the processes; differentiable, not in place.

    Every process's loss may depend on the sum, so the gradients with respect to it are also summed. With a single
    process `x` itself is returned.
    """
    if not is_distributed():
        return x
    total: torch.Tensor = _SumOverProcesses.apply(x)
    return total


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: torch.Tensor) -> torch.Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total


@torch.no_grad()
def all_gather(x: torch.Tensor) -> torch.Tensor:
    """Concatenate the processes' tensors along dimension 0, in rank order, without gradient.

    Args:
        x: (N, …), of the same shape and dtype on all processes. With a single process it is returned as it is.
    """
    if not is_distributed():
        return x.detach()
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(comm.get_world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


def all_gather_with_grad(x: torch.Tensor) -> torch.Tensor:
    """Concatenate the processes' tensors along dimension 0, in rank order; each row's gradient returns to its process.

    Every process's loss may depend on every row, so a row's gradient is summed over the processes. Averaging the
    parameters' gradients over the processes, as DistributedDataParallel does, then gives the gradient of the mean loss:
    that of one process with the joined batch.

    Args:
        x: (N, …), of the same shape and dtype on all processes. With a single process it is returned as it is.
    """
    if not is_distributed():
        return x
    joined: torch.Tensor = _GatherWithGradient.apply(x)
    return joined


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return all_gather(x)

    @staticmethod
    def backward(_ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(comm.get_world_size())[comm.get_rank()]


def rank_offset(x: torch.Tensor) -> int:
    """The index of this process's first row in `all_gather(x)`."""
    return comm.get_rank() * len(x)


def wrap_distributed(module: nn.Module) -> nn.Module:
    """The module in DistributedDataParallel, which averages gradients; with a single process the module itself.

    Buffers are not broadcast: each process keeps its own running statistics.
    """
    if not is_distributed():
        return module
    device = next(module.parameters()).device
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer versions of torch rename the last argument
        device_ids = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=device_ids, broadcast_buffers=False)


@contextlib.contextmanager
def rank0_buffers(module: nn.Module) -> Iterator[None]:
    """Give every process rank 0's buffers while the block runs; afterwards each has its own again, bit for bit."""
    buffers = list(module.buffers()) if is_distributed() else []
    own = [buffer.clone() for buffer in buffers]
    try:
        for buffer in buffers:
            dist.broadcast(buffer, 0)
        yield
    finally:
        for buffer, value in zip(buffers, own, strict=True):
            buffer.copy_(value)


def run_on_main_process(action: Callable[[], T]) -> T:
    """Run `action` on the main process and return its value on all processes.

    Args:
        action: returns a picklable value.

    Raises:
        UserError: `action` raised it; it is raised on all processes. A full or failing disk is one, too.
    """
    outcome: list[tuple[UserError | None, T | None]] = [(None, None)]
    if comm.is_main_process():
        try:
            outcome = [(None, action())]
        except UserError as error:
            outcome = [(type(error)(str(error)), None)]
        except OSError as error:
            failure = storage_error(error)
            if failure is None:
                raise
            outcome = [(failure, None)]
    if is_distributed():
        dist.broadcast_object_list(outcome)
    failed, value = outcome[0]
    if failed is not None:
        raise failed
    return value  # type: ignore[return-value]


@contextlib.contextmanager
def lock_on_main_process(lock: WriterLock) -> Iterator[None]:
    """Hold a lock on the main process while the block runs.

    Raises:
        UserError: another process holds it; raised on all processes.
    """
    run_on_main_process(lock.acquire)
    try:
        yield
    finally:
        lock.release()
