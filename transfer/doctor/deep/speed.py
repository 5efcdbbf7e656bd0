"""Images a second and peak memory of a GPU at the real sizes, in each way the trainers have."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass

from common.workload import FP32, Way, Workload
from transfer.doctor.deep.arithmetic import arithmetic
from transfer.doctor.deep.children import in_processes
from transfer.doctor.deep.guard import broken, is_out_of_memory
from transfer.doctor.finding import Finding

GIB = 1 << 30
WARM_UP, STEPS, SECONDS = 3, 20, 4.0
"""Steps before the clock starts; steps that are timed, or as many as begin within so many seconds."""
LEAST_FOR_COMPILE = 25.0
"""Seconds below which torch.compile is not tried."""


@dataclass(frozen=True)
class Speed:
    """Of steps of one kind: seconds each, and the most memory that tensors took on the GPU, in bytes."""

    seconds: float
    peak: int


def timed(workload: Workload, device: str, way: Way, images: int, warm_up: int = WARM_UP, steps: int = STEPS) -> Speed:
    """Train at the real size and take the time. The batch lies on the device: reading images is not in it."""
    import torch

    with arithmetic(way.tf32, workload.benchmark):
        try:
            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats(device)
            step = workload.full(device, way, images).step
            for _ in range(warm_up):
                step()
            torch.cuda.synchronize(device)
            start, done = time.perf_counter(), 0
            while done < steps and time.perf_counter() - start < SECONDS:
                step()
                done += 1
            torch.cuda.synchronize(device)
            return Speed((time.perf_counter() - start) / done, torch.cuda.max_memory_allocated(device))
        finally:
            step = None  # type: ignore[assignment]
            release()


def release() -> None:
    """Give the GPU back what nothing refers to any more; a trainer and its hooks refer to each other."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def compiled(workload: Workload, device: str, way: Way, images: int) -> Speed:
    """`timed` in a process of its own, which compiling may hold up for minutes."""
    import torch

    torch.cuda.set_device(device)
    return timed(workload, device, way, images)


def speeds(workload: Workload, device: str, deadline: float, seconds: list[float]) -> list[Finding]:
    """A finding for each way, and one on memory.

    Args:
        workload: what is trained.
        device: a GPU.
        deadline: on the monotonic clock: what would begin after it is left out.
        seconds: takes those of each way's step.
    """
    at_once = [way for way in workload.ways if not way.compiled]
    findings = [_look(workload, device, way, deadline, seconds) for way in at_once]
    findings.append(memory(workload, device, deadline))  # before what may take all the time there is
    return findings + [_look(workload, device, way, deadline, seconds) for way in workload.ways if way.compiled]


def _look(workload: Workload, device: str, way: Way, deadline: float, seconds: list[float]) -> Finding:
    subject = f"{workload.name} {way} on {device}, speed"
    try:
        speed = _speed(workload, device, way, deadline)
    except Exception as error:
        finding = broken(subject, error)
    else:
        if isinstance(speed, str):
            return Finding(subject, "skipped", speed)
        seconds.append(speed.seconds)
        return _finding(workload, subject, speed, device)
    release()  # what the error still held
    return finding


def _speed(workload: Workload, device: str, way: Way, deadline: float) -> Speed | str:
    """The speed, or why there is none."""
    left = deadline - time.monotonic()
    if left <= 0:
        return "no time was left for it"
    if not way.compiled:
        return timed(workload, device, way, workload.images)
    if left < LEAST_FOR_COMPILE:
        return f"{left:.0f} s were left, in which torch.compile does not end"
    answer = in_processes(compiled, [(workload, device, way, workload.images)], left)[0]
    return answer.value or f"torch.compile: {answer.error}"


def _finding(workload: Workload, subject: str, speed: Speed, device: str) -> Finding:
    rate = workload.images / speed.seconds
    found = (
        f"{rate:.1f} images/s ({speed.seconds * 1e3:.1f} ms a step), peak {speed.peak / GIB:.1f} GiB; {workload.real}"
    )
    return Finding(subject, "ok", found, normal=normal(device))


def normal(device: str) -> str:
    """What is known of a GPU of this name."""
    import torch

    return (
        f"unknown: no figure is published for {torch.cuda.get_device_name(device)} and this project has measured none"
    )


def memory(workload: Workload, device: str, deadline: float) -> Finding:
    """How many images fit, in float32."""
    import torch

    subject = f"{workload.name} fp32 on {device}, memory"
    total = torch.cuda.get_device_properties(device).total_memory
    told = []
    for images in (workload.images, *workload.more_images):
        if time.monotonic() > deadline:
            told.append(f"{images}: no time was left")
            break
        try:
            peak = timed(workload, device, FP32, images, warm_up=1, steps=1).peak
        except Exception as error:
            if not is_out_of_memory(error):
                return broken(subject, error)
            told.append(f"{images}: does not fit")
            break
        told.append(f"{images}: {peak / GIB:.1f} GiB")
    release()  # what the error of one that did not fit still held
    found = f"images on this GPU of {total / GIB:.0f} GiB: {', '.join(told)}"
    return Finding(subject, "ok", found, normal="grows about as the number of images")
