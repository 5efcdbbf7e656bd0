"""`--profile`: run some training steps under torch.profiler and summarize where their time went."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_transfer.errors import UserError
from ssl_transfer.files import atomic_write, write_text

if TYPE_CHECKING:
    import torch

WARM_UP, STEPS = 5, 10
"""Steps before the profile (kernel selection, memory allocation, start of the loaders), and its default length."""
FOLDER, TRACE, SUMMARY = "profile", "trace.json", "summary.txt"
HELP = (
    f"profile N steps (default: {STEPS}) after {WARM_UP} of warm-up with torch.profiler: a chrome trace and a "
    f"summary in DIR/{FOLDER}; the results of the run do not change"
)
STEP = "profiled step"
DATA, FORWARD, BACKWARD, OPTIMISER, OTHER = "data", "forward", "backward", "optimiser", "other"
PHASES = (DATA, FORWARD, BACKWARD, OPTIMISER)
"""Consecutive parts of a step; this module marks the first three in the trace, torch marks the last."""
COMMUNICATION = "communication"

Interval = tuple[float, float]


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add `--profile [N]`: 0 steps without the option, `STEPS` without N."""
    parser.add_argument("--profile", type=_step_count, nargs="?", const=STEPS, default=0, metavar="N", help=HELP)


def _step_count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of steps; write --profile {STEPS}, or --profile before another option"
        )
    return int(text)


def require_steps(steps: int, left: int) -> None:
    """Check that the `left` steps of a run suffice to profile `steps` of them; 0 profiles none.

    Raises:
        UserError: the run is too short.
    """
    if steps and left < WARM_UP + steps:
        remedy = f"ask for --profile {left - WARM_UP} at most" if left > WARM_UP else "profile a longer run"
        raise UserError(f"--profile {steps} needs {WARM_UP + steps} steps, but this run makes {left} more; {remedy}")


class Profile:
    """Profile of some training steps of one process.

    Args:
        folder: the run's folder.
        steps: number of steps.
        device: the training device.
        log: receives the summary, which is also written to a file.
    """

    def __init__(self, folder: Path, steps: int, device: torch.device, log: Callable[[str], None]) -> None:
        self.folder, self.steps, self.device, self.log = folder / FOLDER, steps, device, log
        self.done = 0
        self._profiler: Any = None
        self._marks = contextlib.ExitStack()

    def before_step(self, iteration: int, model: torch.nn.Module, owner: Any, batches: str) -> None:
        """Start the profiler after the warm-up, and mark the parts of a profiled step.

        Args:
            iteration: the step that follows.
            model: the model whose forward passes are marked.
            owner, batches: object and name of its attribute that holds the iterator of batches.
        """
        if not WARM_UP <= self.done < WARM_UP + self.steps:
            return
        if self._profiler is None:
            self._start(iteration)
        self._marks.enter_context(_record(STEP))
        self._marks.callback(self._synchronize)
        source = getattr(owner, batches)
        setattr(owner, batches, _mark_batches(source))
        self._marks.callback(setattr, owner, batches, source)
        self._marks.enter_context(_marked_passes(model))

    def after_step(self, iteration: int) -> None:
        """Remove the marks; write the trace and the summary after the last profiled step."""
        self.done += 1
        self._marks.close()
        if self._profiler is not None and self.done == WARM_UP + self.steps:
            self._write(iteration)

    def abandon(self) -> None:
        """Remove the marks and drop an unfinished profile, because the run ends."""
        self._marks.close()
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def _synchronize(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _start(self, iteration: int) -> None:
        from torch.profiler import ProfilerActivity, profile

        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences Kineto's messages on stderr
        self._synchronize()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])]
        self.first, self._profiler = iteration, profile(activities=activities)
        self._profiler.start()

    def _write(self, last: int) -> None:
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        trace = self.folder / TRACE
        with tempfile.TemporaryDirectory() as scratch:
            profiler.export_chrome_trace(str(Path(scratch) / TRACE))
            content = (Path(scratch) / TRACE).read_bytes()
        with atomic_write(trace) as stream:
            stream.write(content)
        table = render(breakdown(json.loads(content)["traceEvents"]))
        text = (
            f"profile of {self.steps} steps, iterations {self.first} to {last}\n{table}\n"
            f"peak memory {_peak_memory(self.device)}\n{trace}: open it in ui.perfetto.dev or chrome://tracing"
        )
        write_text(self.folder / SUMMARY, text + "\n")
        self.log(text)


def _peak_memory(device: torch.device) -> str:
    if device.type == "cuda":
        import torch

        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB of tensors on the GPU"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB of this process"


def _record(name: str) -> Any:
    import torch

    return torch.profiler.record_function(name if name == STEP else f"{STEP}: {name}")


@contextlib.contextmanager
def _marked_passes(model: torch.nn.Module) -> Iterator[None]:
    """Mark the forward passes of `model` and all backward passes."""
    import torch

    forward = contextlib.ExitStack()
    handles = [
        model.register_forward_pre_hook(lambda _module, _args: forward.enter_context(_record(FORWARD)) and None),
        model.register_forward_hook(lambda _module, _args, _output: forward.close(), always_call=True),
    ]
    backward = torch.autograd.backward

    def marked(*args: Any, **kwargs: Any) -> None:
        with _record(BACKWARD):
            backward(*args, **kwargs)

    torch.autograd.backward = marked
    try:
        yield
    finally:
        torch.autograd.backward = backward
        for handle in handles:
            handle.remove()


def _mark_batches(batches: Iterator[Any]) -> Iterator[Any]:
    while True:
        with _record(DATA):
            try:
                batch = next(batches)
            except StopIteration:
                return
        yield batch


@dataclass(frozen=True)
class Part:
    """Time of one part of a step, in milliseconds per step.

    Attributes:
        host: on the clock of the training process.
        device: of the kernels that this part launched; None without a GPU.
    """

    host: float
    device: float | None


@dataclass(frozen=True)
class Breakdown:
    """Time of the profiled steps.

    Attributes:
        steps: number of steps.
        step: the whole step; its device time shows how busy the GPU was, where kernels do not run concurrently.
        parts: `PHASES` and `OTHER`, which add up to the step's host time, and `COMMUNICATION`, which overlaps them.
    """

    steps: int
    step: Part
    parts: dict[str, Part]


def breakdown(events: Iterable[dict[str, Any]]) -> Breakdown:
    """Compute the time of each part from a chrome trace (`traceEvents` of torch.profiler; times in microseconds).

    A kernel belongs to the part during which it was launched, on any thread: the kernels of the backward pass are
    launched by autograd's threads while the training thread waits.

    Raises:
        ValueError: no step is marked.
    """
    spans = [event for event in events if event.get("ph") == "X"]
    marks: dict[str, list[Interval]] = {name: [] for name in (STEP, *PHASES)}
    for span in spans:
        name = str(span.get("name", "")).removeprefix(f"{STEP}: ")
        name = OPTIMISER if name.startswith("Optimizer.step#") else name
        if span.get("cat") == "user_annotation" and name in marks:
            marks[name].append(_interval(span))
    steps = marks.pop(STEP)
    if not steps:
        raise ValueError("the trace marks no step")
    host = {name: _length(marks[name]) for name in PHASES}
    host[OTHER] = _length(steps) - sum(host.values())
    collectives = [_interval(span) for span in spans if str(span.get("name", "")).startswith(("nccl:", "gloo:"))]
    host[COMMUNICATION] = _length(_overlap(_union(collectives), steps))
    device = _device_times(spans, marks)

    def part(host_time: float, device_time: float) -> Part:
        scale = len(steps) * 1000
        return Part(host_time / scale, None if device is None else device_time / scale)

    parts = {name: part(time, (device or {}).get(name, 0.0)) for name, time in host.items()}
    return Breakdown(len(steps), part(_length(steps), sum((device or {}).values())), parts)


def _interval(span: dict[str, Any]) -> Interval:
    return float(span["ts"]), float(span["ts"]) + float(span.get("dur", 0))


def _length(intervals: Iterable[Interval]) -> float:
    return sum(end - start for start, end in intervals)


def _union(intervals: Iterable[Interval]) -> list[Interval]:
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _overlap(intervals: Sequence[Interval], limits: Sequence[Interval]) -> list[Interval]:
    pieces = ((max(start, low), min(end, high)) for start, end in intervals for low, high in limits)
    return [(start, end) for start, end in pieces if start < end]


def _device_times(spans: Sequence[dict[str, Any]], marks: dict[str, list[Interval]]) -> dict[str, float] | None:
    """Microseconds of GPU work by part; None where the trace has no GPU."""
    work = [span for span in spans if span.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    if not work:
        return None
    launches = [span for span in spans if span.get("cat") in ("cuda_runtime", "cuda_driver")]
    launched = {_correlation(span): float(span["ts"]) for span in launches}
    windows = sorted((start, end, name) for name, found in marks.items() for start, end in found)
    times: dict[str, float] = {}
    for span in work:
        is_nccl = "nccl" in str(span.get("name", "")).lower()
        part = COMMUNICATION if is_nccl else _part_at(launched.get(_correlation(span)), windows)
        times[part] = times.get(part, 0.0) + float(span.get("dur", 0))
    return times


def _correlation(span: dict[str, Any]) -> Any:
    return span.get("args", {}).get("correlation")


def _part_at(moment: float | None, windows: Sequence[tuple[float, float, str]]) -> str:
    """The part of the step that contains a moment of the host's clock."""
    if moment is None:
        return OTHER
    index = bisect_right(windows, moment, key=lambda window: window[0]) - 1
    return windows[index][2] if index >= 0 and moment <= windows[index][1] else OTHER


def render(found: Breakdown) -> str:
    """The breakdown as a small text table."""
    gpu = found.step.device is not None
    lines = [f"{'':13s} {'ms a step':>9s}  {'share':>5s}" + (f"  {'GPU ms':>8s}  {'GPU share':>9s}" if gpu else "")]
    for name, part in (*found.parts.items(), ("step", found.step)):
        line = f"{name:13s} {part.host:9.2f}  {part.host / found.step.host:5.0%}"
        if part.device is not None:
            line += f"  {part.device:8.2f}  {part.device / found.step.host:9.0%}"
        lines.append(line + ("  (overlaps the others)" if name == COMMUNICATION and part.host else ""))
    return "\n".join(lines)
