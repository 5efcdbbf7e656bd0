"""What the processes of one evaluation tell each other; all of it works for a process that is alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from common.errors import UserError

T = TypeVar("T")


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The sum of every process's tensor, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def on_main_process(action: Callable[[], T]) -> T:
    """What `action` returns on the main process, on all; a UserError there is raised on all. Plain values only."""
    said: list[tuple[str | None, T | None]] = [(None, None)]
    if rank() == 0:
        try:
            said = [(None, action())]
        except UserError as error:
            said = [(str(error), None)]
    if dist.is_initialized():
        dist.broadcast_object_list(said)
    error_line, value = said[0]
    if error_line is not None:
        raise UserError(error_line)
    return value  # type: ignore[return-value]
