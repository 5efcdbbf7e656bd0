"""`--profile`: some steps of a training under torch.profiler, which changes nothing that they compute."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from common.files import atomic_write, write_text
from common.trace import BACKWARD, DATA, FORWARD, STEP, breakdown, render

if TYPE_CHECKING:
    import torch

WARM_UP, STEPS = 5, 10
"""Steps before the profile begins (kernels are chosen, memory is taken, loaders start), and how many it has."""
FOLDER, TRACE, SUMMARY = "profile", "trace.json", "summary.txt"
HELP = (
    f"profile N steps (default: {STEPS}), after {WARM_UP} of warm-up, with torch.profiler: a chrome trace and a "
    f"summary in DIR/{FOLDER}; the run computes what it would without"
)


def add_option(parser: argparse.ArgumentParser) -> None:
    """Give a trainer's command line `--profile [N]`: 0 steps without it, STEPS with it alone."""
    parser.add_argument("--profile", type=_count, nargs="?", const=STEPS, default=0, metavar="N", help=HELP)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of steps; write --profile {STEPS}, or --profile before another option"
        )
    return int(text)


def require_steps(steps: int, left: int) -> None:
    """See that a run is long enough to be profiled.

    Args:
        steps: how many are to be profiled; 0 asks for none.
        left: how many the run still makes.

    Raises:
        UserError: it makes too few.
    """
    if steps and left < WARM_UP + steps:
        remedy = f"ask for --profile {left - WARM_UP} at most" if left > WARM_UP else "profile a longer run"
        raise UserError(f"--profile {steps} needs {WARM_UP + steps} steps, but this run makes {left} more; {remedy}")


class Profile:
    """The profile of the steps of one process.

    Args:
        folder: the run's folder.
        steps: how many steps.
        device: what trains.
        say: where the summary goes, besides its file.
    """

    def __init__(self, folder: Path, steps: int, device: torch.device, say: Callable[[str], None]) -> None:
        self.folder, self.steps, self.device, self.say = folder / FOLDER, steps, device, say
        self.done = 0
        self._profiler: Any = None
        self._marks = contextlib.ExitStack()

    def before_step(self, iteration: int, model: torch.nn.Module, owner: Any, batches: str) -> None:
        """Begin where it is time to, and mark the parts of a step that is profiled.

        Args:
            iteration: which step comes.
            model: whose forward and backward passes are marked.
            owner, batches: the iterator of batches is this attribute of it; there again after the step.
        """
        if not WARM_UP <= self.done < WARM_UP + self.steps:
            return
        import torch

        if self._profiler is None:
            self._begin(iteration)
        self._marks.enter_context(torch.profiler.record_function(STEP))
        self._marks.callback(self._wait)
        source = getattr(owner, batches)
        setattr(owner, batches, MarkedBatches(source))
        self._marks.callback(setattr, owner, batches, source)
        self._marks.enter_context(marked_step(model))

    def after_step(self, iteration: int) -> None:
        """End the step, and the profile with its last."""
        self.done += 1
        self._marks.close()
        if self._profiler is not None and self.done == WARM_UP + self.steps:
            self._end(iteration)

    def abandon(self) -> None:
        """The run ends, however it does: nothing is marked any more, and a profile that has begun is dropped."""
        self._marks.close()
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def _wait(self) -> None:
        """For the device: the kernels of a step belong to it."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _begin(self, iteration: int) -> None:
        from torch.profiler import ProfilerActivity, profile

        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its own notes on stderr
        self._wait()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])]
        self.first, self._profiler = iteration, profile(activities=activities)
        self._profiler.start()

    def _end(self, last: int) -> None:
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        trace = self.folder / TRACE
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / TRACE
            profiler.export_chrome_trace(str(file))
            events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
            with atomic_write(trace) as stream, file.open("rb") as source:
                shutil.copyfileobj(source, stream)
        text = (
            f"profile of {self.steps} steps, iterations {self.first} to {last}\n{render(breakdown(events))}\n"
            f"peak memory {_peak(self.device)}\n{trace}: open it in ui.perfetto.dev or chrome://tracing"
        )
        write_text(self.folder / SUMMARY, text + "\n")
        self.say(text)


def _peak(device: torch.device) -> str:
    """The most memory that was taken since the process began."""
    if device.type == "cuda":
        import torch

        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB of tensors on the GPU"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB of this process"


@contextlib.contextmanager
def marked_step(model: torch.nn.Module) -> Iterator[None]:
    """Mark the forward passes of `model` and all backward passes while the block runs."""
    import torch

    forward = Span(FORWARD)
    handles = [
        model.register_forward_pre_hook(lambda _module, _args: forward.open()),
        model.register_forward_hook(lambda _module, _args, _output: forward.close(), always_call=True),
    ]
    backward = torch.autograd.backward

    def marked(*args: Any, **more: Any) -> None:
        with torch.profiler.record_function(f"{STEP}: {BACKWARD}"):
            backward(*args, **more)

    torch.autograd.backward = marked
    try:
        yield
    finally:
        torch.autograd.backward = backward
        for handle in handles:
            handle.remove()


class Span:
    """A mark in the trace that is opened in one place and closed in another."""

    def __init__(self, name: str) -> None:
        self.name = f"{STEP}: {name}"
        self._open: Any = None

    def open(self) -> None:
        """The mark begins."""
        import torch

        self._open = torch.profiler.record_function(self.name)
        self._open.__enter__()

    def close(self) -> None:
        """The mark ends, where it has begun."""
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None


class MarkedBatches:
    """An iterator whose `next` is marked as data."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        """Itself."""
        return self

    def __next__(self) -> Any:
        """The next batch."""
        import torch

        with torch.profiler.record_function(f"{STEP}: {DATA}"):
            return next(self.batches)
