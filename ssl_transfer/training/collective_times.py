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


class CollectiveTimes:
    """Measures the time between entering and leaving each collective, DistributedDataParallel's of gradients included.

    On a GPU a collective makes the stream wait, not the host: events are recorded, and read when they have passed.

    Args:
        is_wanted: measure, if there are other processes.
    """

    def __init__(self, is_wanted: bool) -> None:
        self._is_wanted = is_wanted and comm.get_world_size() > 1
        self._spans: list[tuple[Any, Any]] = []
        self._is_measured = self._is_due = False

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Let `torch.distributed`'s functions pass through this object while the block runs."""
        real = {name: getattr(dist, name) for name in COLLECTIVES} if self._is_wanted else {}
        for name, function in real.items():
            setattr(dist, name, self._timed(function))
        try:
            yield
        finally:
            for name, function in real.items():
                setattr(dist, name, function)

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            entered = _mark() if self._is_measured else None
            value = function(*args, **kwargs)
            if entered is not None:
                self._spans.append((entered, _mark()))
            return value

        return call

    def watch_gradients(self, module: nn.Module) -> None:
        """Also measure the exchange of gradients at the end of each backward pass of `module`.

        Callbacks of the backward pass run in the order of their registration: the first below before
        DistributedDataParallel's, which waits; the second after it.
        """
        callback = Variable._execution_engine.queue_callback

        def wait() -> None:
            entered = _mark()
            callback(lambda: self._spans.append((entered, _mark())))

        if self._is_wanted:
            first = next(parameter for parameter in module.parameters() if parameter.requires_grad)
            first.register_hook(lambda _: callback(wait) if self._is_measured else None)

    def begin_step(self, number: int) -> float | None:
        """A step begins; returns, once, the seconds waited in the last measured one."""
        waited = None
        if self._is_due and all(isinstance(end, float) or end.query() for _, end in self._spans):
            waited = sum(b - a if isinstance(b, float) else a.elapsed_time(b) / 1000 for a, b in self._spans)
            self._spans, self._is_due = [], False
        self._is_measured = self._is_wanted and number % EVERY == 0 and not self._is_due
        self._is_due = self._is_due or self._is_measured
        return waited

    def end_step(self) -> None:
        self._is_measured = False


def _mark() -> Any:
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
