"""What a chrome trace of some training steps says: where their time went. Imports no torch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

STEP = "profiled step"
DATA, FORWARD, BACKWARD, OPTIMISER, OTHER = "data", "forward", "backward", "optimiser", "other"
PHASES = (DATA, FORWARD, BACKWARD, OPTIMISER)
"""Parts of a step that follow one another; a trace marks the first three by these names, torch the last."""
COMMUNICATION = "communication"
OPTIMISER_STEP = "Optimizer.step#"
COLLECTIVES = ("nccl:", "gloo:")
"""How torch.distributed's operations begin in a trace."""
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCHES = ("cuda_runtime", "cuda_driver")

Interval = tuple[float, float]


@dataclass(frozen=True)
class Part:
    """One part of a step.

    Attributes:
        host: milliseconds a step on the clock of the training process.
        device: milliseconds a step that the GPU computed what this part asked of it; None without a GPU.
    """

    host: float
    device: float | None


@dataclass(frozen=True)
class Breakdown:
    """Where the time of steps went.

    Attributes:
        steps: how many there were.
        step: the whole step. Its device time says how busy the GPU was, where kernels do not run side by side.
        parts: `PHASES` and `OTHER`, which add up to the step's host time, and `COMMUNICATION`, which runs within and
            beside them.
    """

    steps: int
    step: Part
    parts: dict[str, Part]


def breakdown(events: Iterable[dict[str, Any]]) -> Breakdown:
    """Read a trace's events (`traceEvents` of torch.profiler's JSON; times in microseconds).

    A kernel belongs to the part in which the host launched it, on whatever thread: the backward pass's are launched by
    threads of autograd's, while the training thread waits for them.

    Raises:
        ValueError: no step is marked.
    """
    spans = [event for event in events if event.get("ph") == "X"]
    marks = _marks(spans)
    steps = marks.pop(STEP, [])
    if not steps:
        raise ValueError("the trace marks no step")
    host = {name: _length(marks.get(name, [])) for name in PHASES}
    total = _length(steps)
    host[OTHER] = total - sum(host.values())
    collectives = [_interval(span) for span in spans if str(span.get("name", "")).startswith(COLLECTIVES)]
    host[COMMUNICATION] = _length(_within(_union(collectives), steps))
    device = _device_times(spans, marks)
    busy = None if device is None else sum(device.values())

    def part(name: str) -> Part:
        return Part(_each(host[name], steps), None if device is None else _each(device.get(name, 0.0), steps))

    whole = Part(_each(total, steps), None if busy is None else _each(busy, steps))
    return Breakdown(len(steps), whole, {name: part(name) for name in host})


def _each(microseconds: float, steps: Sequence[Interval]) -> float:
    return microseconds / len(steps) / 1000


def _marks(spans: Iterable[dict[str, Any]]) -> dict[str, list[Interval]]:
    """Where the marks of each name lie."""
    marks: dict[str, list[Interval]] = {}
    for span in spans:
        if span.get("cat") != "user_annotation":
            continue
        name = str(span["name"])
        name = OPTIMISER if name.startswith(OPTIMISER_STEP) else name.removeprefix(f"{STEP}: ")
        if name == STEP or name in PHASES:
            marks.setdefault(name, []).append(_interval(span))
    return marks


def _interval(span: dict[str, Any]) -> Interval:
    return float(span["ts"]), float(span["ts"]) + float(span.get("dur", 0))


def _length(intervals: Iterable[Interval]) -> float:
    return sum(end - start for start, end in intervals)


def _union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time without overlaps."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _within(intervals: Sequence[Interval], limits: Sequence[Interval]) -> list[Interval]:
    """What of `intervals` lies in one of `limits`."""
    pieces = ((max(start, low), min(end, high)) for start, end in intervals for low, high in limits)
    return [(start, end) for start, end in pieces if start < end]


def _device_times(spans: Sequence[dict[str, Any]], marks: dict[str, list[Interval]]) -> dict[str, float] | None:
    """Microseconds the GPU worked for each part; None where the trace has no GPU."""
    work = [span for span in spans if span.get("cat") in ON_DEVICE]
    if not work:
        return None
    launched = {_correlation(span): float(span["ts"]) for span in spans if span.get("cat") in LAUNCHES}
    windows = sorted((start, end, name) for name, found in marks.items() for start, end in found)
    times = dict.fromkeys((*PHASES, OTHER, COMMUNICATION), 0.0)
    for span in work:
        if "nccl" in str(span.get("name", "")).lower():
            part = COMMUNICATION
        else:
            part = _part_at(launched.get(_correlation(span)), windows)
        times[part] += float(span.get("dur", 0))
    return times


def _correlation(span: dict[str, Any]) -> Any:
    return span.get("args", {}).get("correlation")


def _part_at(moment: float | None, windows: Sequence[tuple[float, float, str]]) -> str:
    """The part that a moment of the host's clock lies in."""
    if moment is None:
        return OTHER
    place = bisect_right(windows, moment, key=lambda window: window[0]) - 1
    return windows[place][2] if place >= 0 and moment <= windows[place][1] else OTHER


def render(found: Breakdown) -> str:
    """The breakdown as a small table."""
    gpu = found.step.device is not None
    lines = [f"{'':13s} {'ms a step':>9s}  {'share':>5s}" + (f"  {'GPU ms':>8s}  {'GPU share':>9s}" if gpu else "")]
    for name, part in (*found.parts.items(), ("step", found.step)):
        beside = "  (within and beside the others)" if name == COMMUNICATION and part.host else ""
        lines.append(f"{name:13s} {_columns(part, found.step)}{beside}")
    return "\n".join(lines)


def _columns(part: Part, step: Part) -> str:
    text = f"{part.host:9.2f}  {part.host / step.host:5.0%}"
    return text if part.device is None else f"{text}  {part.device:8.2f}  {part.device / step.host:9.0%}"
