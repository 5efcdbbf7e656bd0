"""The breakdown of a profile, from hand-written traces."""

from __future__ import annotations

from typing import Any

import pytest

from ssl_transfer.profiling import BACKWARD, COMMUNICATION, DATA, FORWARD, OPTIMISER, OTHER, STEP, breakdown, render

Event = dict[str, Any]


def span(name: str, start: float, length: float, cat: str = "user_annotation", tid: int = 1, **args: Any) -> Event:
    return {"ph": "X", "name": name, "cat": cat, "ts": start, "dur": length, "tid": tid, "args": args}


def step(start: float) -> list[Event]:
    """10 ms: 1 data, 2 forward, 4 backward, 2 optimiser, 1 other."""
    return [
        span(STEP, start, 10_000),
        span(f"{STEP}: {DATA}", start, 1_000),
        span(f"{STEP}: {FORWARD}", start + 1_000, 2_000),
        span(f"{STEP}: {BACKWARD}", start + 3_000, 4_000),
        span("Optimizer.step#SGD.step", start + 7_000, 2_000),
        span("aten::conv2d", start + 1_100, 900, cat="cpu_op"),
    ]


def launched(number: int, moment: float, length: float, name: str = "conv", tid: int = 1) -> list[Event]:
    """A kernel that runs long after its launch."""
    return [
        span("cudaLaunchKernel", moment, 5, cat="cuda_runtime", tid=tid, correlation=number),
        span(name, moment + 50_000, length, cat="kernel", tid=7, correlation=number),
    ]


def test_the_parts_of_a_step_add_up() -> None:
    found = breakdown([*step(0), {"ph": "i", "name": "an instant"}, *step(20_000)])
    host = {name: part.host for name, part in found.parts.items()}
    assert found.steps == 2 and found.step.host == pytest.approx(10)
    assert host == pytest.approx({DATA: 1, FORWARD: 2, BACKWARD: 4, OPTIMISER: 2, OTHER: 1, COMMUNICATION: 0})
    assert found.step.device is None and all(part.device is None for part in found.parts.values())
    assert "GPU" not in render(found) and "backward           4.00    40%" in render(found)


def test_a_kernel_belongs_to_the_part_that_launched_it_on_whatever_thread() -> None:
    kernels = [
        *launched(1, 1_500, 1_800),
        *launched(2, 3_500, 3_000, tid=2),  # autograd's thread
        *launched(3, 7_100, 500),
        *launched(4, 9_500, 300),  # after the optimiser
        *launched(5, 3_600, 700, name="ncclDevKernel_AllReduce_Sum_f32_RING_LL", tid=3),
        span("Memcpy HtoD", 60_000, 100, cat="gpu_memcpy", tid=7, correlation=99),  # its launch is not in the trace
        span(f"{STEP}: {FORWARD}", 51_000, 9_000, cat="gpu_user_annotation", tid=7),  # the mark's shadow on the GPU
    ]
    found = breakdown([*step(0), *kernels])
    device = {name: part.device for name, part in found.parts.items()}
    expected = {DATA: 0.0, FORWARD: 1.8, BACKWARD: 3.0, OPTIMISER: 0.5, OTHER: 0.4, COMMUNICATION: 0.7}
    assert device == pytest.approx(expected)
    assert found.step.device == pytest.approx(sum(expected.values()))
    assert found.parts[FORWARD].host == pytest.approx(2)
    assert "GPU ms" in render(found)


def test_operations_between_processes_count_once_and_within_steps_alone() -> None:
    operations = [
        span("gloo:all_reduce", 3_000, 1_000, cat="cpu_op", tid=4),
        span("gloo:all_reduce", 3_500, 1_000, cat="cpu_op", tid=5),  # beside the first
        span("gloo:barrier", 9_500, 5_000, cat="user_annotation"),  # half a millisecond of it is the step's
        span("gloo:all_reduce", 40_000, 1_000, cat="cpu_op"),
    ]
    found = breakdown([*step(0), *operations])
    assert found.parts[COMMUNICATION].host == pytest.approx(2.0)
    assert found.parts[OTHER].host == pytest.approx(1)  # it runs beside them
    assert "communication      2.00    20%  (overlaps the others)" in render(found)


def test_several_forward_and_backward_passes_a_step() -> None:
    more = [span(f"{STEP}: {FORWARD}", 9_100, 300), span(f"{STEP}: {BACKWARD}", 9_400, 500)]
    found = breakdown([*step(0), *more])
    assert found.parts[FORWARD].host == pytest.approx(2.3) and found.parts[BACKWARD].host == pytest.approx(4.5)
    assert found.parts[OTHER].host == pytest.approx(0.2)


def test_a_trace_without_marks() -> None:
    with pytest.raises(ValueError, match="marks no step"):
        breakdown([span("aten::conv2d", 0, 5, cat="cpu_op")])
