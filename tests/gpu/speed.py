"""Images per second and peak memory of a GPU at the real sizes, in each precision config of the trainers."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass

from tests.gpu.guard import finding_from_error, is_out_of_memory
from tests.gpu.numerics import backend_precision
from tests.gpu.processes import run_in_processes
from tests.gpu.workloads import FP32, PrecisionConfig, Workload
from transfer.doctor.finding import Finding

GIB = 1 << 30
WARM_UP, STEPS, SECONDS = 3, 20, 4.0
"""Warm-up steps; timed steps, or as many as start within this many seconds."""
LEAST_FOR_COMPILE = 25.0
"""With fewer seconds left, torch.compile is not tried."""


@dataclass(frozen=True)
class StepSpeed:
    """Seconds per step, and peak memory allocated on the GPU in bytes."""

    seconds: float
    peak: int


def time_steps(
    workload: Workload, device: str, precision: PrecisionConfig, images: int, warm_up: int = WARM_UP, steps: int = STEPS
) -> StepSpeed:
    """Time training steps of the real size. The batch is on the device: reading images is not included."""
    import torch

    with backend_precision(precision.tf32, workload.benchmark):
        try:
            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats(device)
            step = workload.full(device, precision, images).step
            for _ in range(warm_up):
                step()
            torch.cuda.synchronize(device)
            start, done = time.perf_counter(), 0
            while done < steps and time.perf_counter() - start < SECONDS:
                step()
                done += 1
            torch.cuda.synchronize(device)
            return StepSpeed((time.perf_counter() - start) / done, torch.cuda.max_memory_allocated(device))
        finally:
            step = None  # type: ignore[assignment]
            release()


def release() -> None:
    """Free cached GPU memory; a trainer and its hooks form a reference cycle, so collect garbage first."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def compiled(workload: Workload, device: str, precision: PrecisionConfig, images: int) -> StepSpeed:
    """`time_steps` in a process of its own, because compilation may take minutes."""
    import torch

    torch.cuda.set_device(device)
    return time_steps(workload, device, precision, images)


def measure_speeds(workload: Workload, device: str, deadline: float, seconds: list[float]) -> list[Finding]:
    """Measure the speed of every precision config, and memory; one finding each.

    Args:
        workload: the training.
        device: a GPU.
        deadline: on the monotonic clock; nothing starts after it.
        seconds: the step time of every config is appended to it.
    """
    eager = [precision for precision in workload.precisions if not precision.compiled]
    findings = [_speed_finding(workload, device, precision, deadline, seconds) for precision in eager]
    findings.append(measure_memory(workload, device, deadline))  # before compilation, which may use up the time
    return findings + [
        _speed_finding(workload, device, precision, deadline, seconds)
        for precision in workload.precisions
        if precision.compiled
    ]


def _speed_finding(
    workload: Workload, device: str, precision: PrecisionConfig, deadline: float, seconds: list[float]
) -> Finding:
    subject = f"{workload.name} {precision} on {device}, speed"
    try:
        speed = _speed(workload, device, precision, deadline)
    except Exception as error:
        finding = finding_from_error(subject, error)
    else:
        if isinstance(speed, str):
            return Finding(subject, "skipped", speed)
        seconds.append(speed.seconds)
        return _finding(workload, subject, speed, device)
    release()  # memory that the error still referenced
    return finding


def _speed(workload: Workload, device: str, precision: PrecisionConfig, deadline: float) -> StepSpeed | str:
    """The speed, or a sentence that says why there is none."""
    left = deadline - time.monotonic()
    if left <= 0:
        return "no time was left"
    if not precision.compiled:
        return time_steps(workload, device, precision, workload.images)
    if left < LEAST_FOR_COMPILE:
        return f"{left:.0f} s were left, too few for torch.compile"
    answer = run_in_processes(compiled, [(workload, device, precision, workload.images)], left)[0]
    return answer.value or f"torch.compile: {answer.error}"


def _finding(workload: Workload, subject: str, speed: StepSpeed, device: str) -> Finding:
    rate = workload.images / speed.seconds
    found = (
        f"{rate:.1f} images/s ({speed.seconds * 1e3:.1f} ms a step), peak {speed.peak / GIB:.1f} GiB; {workload.real}"
    )
    return Finding(subject, "ok", found, normal=known_speed(device))


def known_speed(device: str) -> str:
    """The known speed of this kind of GPU."""
    import torch

    return (
        f"unknown: no figure is published for {torch.cuda.get_device_name(device)} and this project has measured none"
    )


def measure_memory(workload: Workload, device: str, deadline: float) -> Finding:
    """Measure the memory of growing numbers of images in float32."""
    import torch

    subject = f"{workload.name} fp32 on {device}, memory"
    total = torch.cuda.get_device_properties(device).total_memory
    sizes = []
    for images in (workload.images, *workload.more_images):
        if time.monotonic() > deadline:
            sizes.append(f"{images}: no time was left")
            break
        try:
            peak = time_steps(workload, device, FP32, images, warm_up=1, steps=1).peak
        except Exception as error:
            if not is_out_of_memory(error):
                return finding_from_error(subject, error)
            sizes.append(f"{images}: does not fit")
            break
        sizes.append(f"{images}: {peak / GIB:.1f} GiB")
    release()  # memory that the error still referenced
    found = f"images on this GPU of {total / GIB:.0f} GiB: {', '.join(sizes)}"
    return Finding(subject, "ok", found, normal="about proportional to the number of images")
