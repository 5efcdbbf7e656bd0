"""How a step went, as every process hears of it: in one sum over them, read at once or while the next step runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pretrain.engine import collapse
from pretrain.methods.base import Output


@dataclass(frozen=True)
class StepResult:
    """One step, over all processes.

    Attributes:
        iteration: which.
        rates: its learning rates, as a message shows them.
        values: `loss`, `std` and the method's metrics.
        norm: of all gradients together.
        stop: whether some process wanted to stop when the step began.
    """

    iteration: int
    rates: str
    values: dict[str, float]
    norm: float
    stop: bool


@dataclass(frozen=True)
class _Sent:
    iteration: int
    rates: str
    names: list[str]
    total: torch.Tensor
    arrived: torch.cuda.Event | None


class Results:
    """The steps' results on their way from the device to this process.

    What is sent is copied to the host behind the step's work, so that reading it later waits for nothing but that.
    """

    def __init__(self) -> None:
        self._sent: deque[_Sent] = deque()

    def send(self, outputs: Sequence[Output], norm: torch.Tensor, stop: bool, iteration: int, rates: str) -> None:
        """Sum a step's numbers up over the processes; all of them call it.

        Args:
            outputs: of the parts of this process's batch, losses without gradient.
            norm: of all gradients together.
            stop: whether this process wants to stop.
            iteration, rates: as in `StepResult`.
        """
        names = sorted(outputs[0].metrics)
        total = summary(outputs, names, norm, stop)
        if dist.is_initialized():
            dist.all_reduce(total)
        self._sent.append(_Sent(iteration, rates, names, *_to_host(total)))

    def read(self, leave: int = 0) -> list[StepResult]:
        """What was sent and not read yet, oldest first, but for the `leave` newest; waits for the device."""
        return [_received(self._sent.popleft()) for _ in range(len(self._sent) - leave)]


def summary(outputs: Sequence[Output], names: Sequence[str], norm: torch.Tensor, stop: bool) -> torch.Tensor:
    """Loss, gradient norm, wish to stop, metrics and the embedding's moments, as float64 numbers that add up."""
    loss = torch.stack([output.loss.double() for output in outputs]).mean()
    moments = torch.stack([collapse.moments(output.embedding) for output in outputs]).sum(0)
    means = [torch.stack([output.metrics[name].double() for output in outputs]).mean() for name in names]
    return torch.cat([torch.stack([loss, norm.double(), torch.full_like(loss, stop), *means]), moments])


def _to_host(total: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """A copy in the host's memory, and what to wait for before it is looked at."""
    if total.device.type != "cuda":
        return total, None
    host = torch.empty(total.shape, dtype=total.dtype, pin_memory=True).copy_(total, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return host, arrived


def _received(sent: _Sent) -> StepResult:
    if sent.arrived is not None:
        sent.arrived.synchronize()
    processes = dist.get_world_size() if dist.is_initialized() else 1
    total, first = sent.total, 3 + len(sent.names)
    means = dict(zip(sent.names, (total[3:first] / processes).tolist(), strict=True))
    values = {"loss": float(total[0]) / processes, "std": collapse.spread(total[first:]), **means}
    return StepResult(sent.iteration, sent.rates, values, float(total[1]) / processes, float(total[2]) > 0)
