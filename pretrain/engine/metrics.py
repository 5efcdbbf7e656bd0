"""Metrics of a step over all processes: reduced in one sum, and read by the host while the next step runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.utils import comm

from pretrain.methods.base import MethodOutput, full_precision
from ssl_transfer.training.collectives import is_distributed


@dataclass(frozen=True)
class StepResult:
    """One step, over all processes.

    Attributes:
        iteration: of the step.
        lrs: learning rates of the optimizer's parameter groups in that step.
        values: `loss`, `std` and the method's metrics.
        norm: Euclidean norm of all gradients.
        stop: whether some process had received a stop signal when the step began.
    """

    iteration: int
    lrs: tuple[float, ...]
    values: dict[str, float]
    norm: float
    stop: bool


@dataclass(frozen=True)
class _Pending:
    iteration: int
    lrs: tuple[float, ...]
    names: list[str]
    total: torch.Tensor
    copied: torch.cuda.Event | None


class MetricsReducer:
    """Reduces each step's metrics over the processes and copies them to the host without waiting for the device."""

    def __init__(self) -> None:
        self._pending: deque[_Pending] = deque()

    def submit(
        self, outputs: Sequence[MethodOutput], *, norm: torch.Tensor, stop: bool, iteration: int, lrs: tuple[float, ...]
    ) -> None:
        """All-reduce a step's metrics; every process must call it.

        Args:
            outputs: of the parts of this process's batch, losses without gradient.
            norm: of all gradients.
            stop: whether this process received a stop signal.
            iteration, lrs: as in `StepResult`.
        """
        names = sorted(outputs[0].metrics)
        total = pack_metrics(outputs, names, norm, stop)
        if is_distributed():
            dist.all_reduce(total)
        self._pending.append(_Pending(iteration, lrs, names, *_copy_to_host(total)))

    def receive(self, leave: int = 0) -> list[StepResult]:
        """The results not received yet, oldest first, except the `leave` newest. Waits for the device."""
        return [_unpack(self._pending.popleft()) for _ in range(len(self._pending) - leave)]


def pack_metrics(outputs: Sequence[MethodOutput], names: Sequence[str], norm: torch.Tensor, stop: bool) -> torch.Tensor:
    """Loss, gradient norm, stop request, metrics and the embedding's moments, as float64 numbers that can be summed."""
    loss = torch.stack([output.loss.double() for output in outputs]).mean()
    moments = torch.stack([embedding_moments(output.embedding) for output in outputs]).sum(0)
    means = [torch.stack([output.metrics[name].double() for output in outputs]).mean() for name in names]
    return torch.cat([torch.stack([loss, norm.double(), torch.full_like(loss, stop), *means]), moments])


def _copy_to_host(total: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """A copy in host memory, and the event to wait for before it is read."""
    if total.device.type != "cuda":
        return total, None
    host = torch.empty(total.shape, dtype=total.dtype, pin_memory=True).copy_(total, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return host, copied


def _unpack(pending: _Pending) -> StepResult:
    if pending.copied is not None:
        pending.copied.synchronize()
    processes = comm.get_world_size()
    total, first = pending.total, 3 + len(pending.names)
    means = dict(zip(pending.names, (total[3:first] / processes).tolist(), strict=True))
    values = {"loss": float(total[0]) / processes, "std": embedding_std(total[first:]), **means}
    return StepResult(pending.iteration, pending.lrs, values, float(total[1]) / processes, float(total[2]) > 0)


def embedding_moments(z: torch.Tensor) -> torch.Tensor:
    """Count, channel sums and channel sums of squares of z/‖z‖: added over processes they give `embedding_std`.

    Args:
        z: (N, d) on any device.

    Returns:
        (2d + 1,) float64 on the same device.
    """
    unit = F.normalize(full_precision(z), dim=1).double()
    return torch.cat([unit.new_tensor([len(unit)]), unit.sum(0), unit.square().sum(0)])


def embedding_std(moments: torch.Tensor) -> float:
    """The mean over channels of the standard deviation over samples of z/‖z‖ (section 4.1 of arXiv 2011.10566).

    Near 1/√d where the outputs spread evenly over the unit sphere, 0 where they have collapsed to one point. It is the
    population's deviation (divided by N, not N − 1), so that 1/√d is its upper bound at any batch size.

    Args:
        moments: the sum of `embedding_moments`.
    """
    mean, square = (moments[1:] / moments[0]).chunk(2)
    return float((square - mean.square()).clamp(min=0).sqrt().mean())
