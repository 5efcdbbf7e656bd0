"""Run every check on the GPUs of this machine, or on the CPU where it has none."""

from __future__ import annotations

import dataclasses
import socket
import sys
import time
from collections.abc import Sequence
from functools import partial

from ssl_transfer.training import distributed
from tests.gpu.exchange import all_reduce_between_processes, all_reduce_finding, measure_all_reduce
from tests.gpu.guard import run_check
from tests.gpu.numerics import check_operators, compare_losses
from tests.gpu.processes import ProcessResult, run_in_processes
from tests.gpu.speed import measure_speeds
from tests.gpu.workloads import DetectorWorkload, SimSiamWorkload, Workload
from transfer.doctor.finding import Finding
from transfer.doctor.machine import usable_cores
from transfer.doctor.software import SETUP, one_line

BUDGET = 100.0
"""Seconds after which no further measurement of speed starts on a GPU."""
TIMEOUT = 300.0
"""Seconds after which a GPU counts as hanging."""
EXCHANGE_TIMEOUT = 120.0

GpuFindings = tuple[list[Finding], "float | None"]


def examine_devices(workloads: Sequence[Workload] = (SimSiamWorkload(), DetectorWorkload())) -> list[Finding]:
    """Check this machine; under torchrun or srun all machines, whose findings the first process returns.

    Each GPU is checked in a process of its own, all in parallel.
    """
    try:
        import torch
    except Exception as error:
        return [Finding("deep", "missing", f"cannot import torch: {one_line(error)}", SETUP)]
    environment = distributed.read_distributed_environment()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if environment is not None and environment.world_size > 1:
        return _examine_own_device(workloads, environment, count)
    if not count:
        log("all-reduce between 2 processes")
        exchange = all_reduce_finding(all_reduce_between_processes(2, EXCHANGE_TIMEOUT), None)
        return [*_on_cpu(workloads), exchange, *_skipped(workloads)]
    log(f"{count} GPU(s), each in a process of its own")
    findings, fastest = _on_gpus(workloads, range(count))
    log(f"all-reduce between {count} process(es)")
    return [*findings, all_reduce_finding(all_reduce_between_processes(count, EXCHANGE_TIMEOUT), fastest)]


def _on_gpus(workloads: Sequence[Workload], indices: Sequence[int]) -> GpuFindings:
    """Check these GPUs; also the seconds of SimSiam's fastest step on the slowest of them."""
    findings: list[Finding] = []
    steps: list[float] = []
    threads = str(max(1, usable_cores() // len(indices)))
    env = [{"OMP_NUM_THREADS": threads} for _ in indices]
    answers = run_in_processes(examine_gpu, [(workloads, index) for index in indices], TIMEOUT, env)
    for index, answer in zip(indices, answers, strict=True):
        found, step = answer.value or ([_no_result(f"cuda:{index}", answer)], None)
        findings += found
        steps += [step] if step else []
    return findings, max(steps, default=None)


def _no_result(device: str, answer: ProcessResult) -> Finding:
    advice = "check nvidia-smi and `dmesg | grep -i xid`; try again with CUDA_LAUNCH_BLOCKING=1, and without this GPU"
    return Finding(device, "wrong", answer.error, advice)


def examine_gpu(workloads: Sequence[Workload], index: int) -> GpuFindings:
    """Check one GPU; also the seconds of the fastest step of the first workload, SimSiam."""
    import torch

    device, start = f"cuda:{index}", time.monotonic()
    torch.cuda.set_device(index)
    findings = run_check(f"torchvision on {device}", lambda: [check_operators(device)])
    for workload in workloads:
        log(f"{workload.name} on {device} against the CPU")
        findings += run_check(f"{workload.name} on {device}", partial(compare_losses, workload, device))
    steps: dict[str, list[float]] = {workload.name: [] for workload in workloads}
    for workload in reversed(workloads):  # SimSiam last: its compilation may use up the time
        subject, taken = f"{workload.name} on {device}, speed", steps[workload.name]
        log(subject)
        findings += run_check(subject, partial(measure_speeds, workload, device, start + BUDGET, taken))
    return findings, min(steps[workloads[0].name], default=None)


def _on_cpu(workloads: Sequence[Workload]) -> list[Finding]:
    findings = []
    for workload in workloads:
        log(f"{workload.name} on the CPU, twice")
        findings += run_check(f"{workload.name} on cpu", partial(compare_losses, workload, "cpu"))
    return findings


def _skipped(workloads: Sequence[Workload]) -> list[Finding]:
    why = "no GPU here: run it on a GPU node"
    findings = [Finding("GPU against CPU", "skipped", why)]
    for workload in workloads:
        if not workload.on_cpu:
            findings.append(Finding(f"{workload.name} AMP", "skipped", f"its trainer supports it on GPUs only; {why}"))
        findings.append(Finding(f"{workload.name} speed and memory", "skipped", f"{why} ({workload.real})"))
    return [*findings, Finding("NCCL", "skipped", f"it connects GPUs; {why}")]


def _examine_own_device(
    workloads: Sequence[Workload], environment: distributed.DistributedEnvironment, gpus: int
) -> list[Finding]:
    """Run in one process of torchrun or Slurm: check its own GPU, or the CPU on rank 0 without GPUs; then all-reduce.

    The GPU is checked in a child without a process group: otherwise the trainers would average over all processes.
    """
    found: list[Finding] = []
    step: float | None = None
    if gpus:
        found, step = _on_gpus(workloads, [environment.local_rank if gpus > 1 else 0])
    elif environment.rank == 0:
        found = _on_cpu(workloads)
    name = f"{socket.gethostname()}, process {environment.local_rank}"
    found = [dataclasses.replace(one, subject=f"{one.subject} ({name})") for one in found]
    gathered: list[Finding] = distributed.launch(_all_reduce_and_gather, (found, step))
    return [*gathered, *([] if gpus else _skipped(workloads))] if environment.rank == 0 else found


def _all_reduce_and_gather(found: list[Finding], step: float | None) -> list[Finding]:
    """Time all-reduce and gather the findings on the first process."""
    from detectron2.utils import comm

    exchange = all_reduce_finding(ProcessResult(measure_all_reduce()), step)
    return [*(one for part in comm.gather(found) for one in part), exchange]


def log(message: str) -> None:
    """Print a line of progress on stderr."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {message}\n")
    sys.stderr.flush()
