"""How long this process waits in collectives for the others: the rest of a step is its own time.

In synchronous training all processes' steps take as long as the slowest one's, which is the one that does not wait.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn
from torch.autograd import Variable

COLLECTIVES = (
    *("all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "barrier"),
    *("broadcast", "broadcast_object_list", "gather_object"),
)
"""torch.distributed's functions that the trainers, Detectron2 and torch's SyncBatchNorm call."""

EVERY = 10
"""One step in so many is measured: a step of SyncBatchNorm has hundreds of collectives."""

Mark = float | torch.cuda.Event


class CollectiveTimes:
    """Measures the time between entering and leaving each collective, DistributedDataParallel's of gradients included.

    On a GPU a collective makes the stream wait, not the host: events are recorded, and read when they have passed.
    """

    def __init__(self) -> None:
        self._spans: list[tuple[Mark, Mark]] = []
        self._is_measured = False

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Let `torch.distributed`'s functions pass through this object while the block runs, if there are others."""
        real = {name: getattr(dist, name) for name in COLLECTIVES} if comm.get_world_size() > 1 else {}
        try:
            for name, function in real.items():
                setattr(dist, name, self._timed(function))
            yield
        finally:
            for name, function in real.items():
                setattr(dist, name, function)

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self._is_measured:
                return function(*args, **kwargs)
            entered = _mark()
            value = function(*args, **kwargs)
            self._spans.append((entered, _mark()))
            return value

        return call

    def watch_gradients(self, module: nn.Module) -> None:
        """Also measure the exchange of gradients at the end of each backward pass of `module`.

        Callbacks of the backward pass run in the order of their registration: the first below before
        DistributedDataParallel's, which waits; the second after it.
        """
        callback = Variable._execution_engine.queue_callback

        def begin(_gradient: torch.Tensor) -> None:
            if self._is_measured:
                callback(wait)

        def wait() -> None:
            entered = _mark()
            callback(lambda: self._spans.append((entered, _mark())))

        if comm.get_world_size() > 1:
            next(p for p in module.parameters() if p.requires_grad).register_hook(begin)

    def begin_step(self, number: int) -> float | None:
        """A step begins.

        Returns:
            Seconds waited in the last measured step, once; None where there is nothing new.
        """
        waited = None
        if self._spans and all(isinstance(end, float) or end.query() for _, end in self._spans):
            waited = sum(map(_seconds, self._spans))
            self._spans = []
        self._is_measured = number % EVERY == 0 and not self._spans
        return waited

    def end_step(self) -> None:
        """A step ended: what follows belongs to none."""
        self._is_measured = False


def _mark() -> Mark:
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(span: tuple[Mark, Mark]) -> float:
    start, end = span
    if isinstance(start, float) or isinstance(end, float):
        return float(end) - float(start)  # type: ignore[arg-type]
    return float(start.elapsed_time(end)) / 1000
