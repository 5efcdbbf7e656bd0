"""Everything the deep look does, on the GPUs there are, or on the CPU."""

from __future__ import annotations

import dataclasses
import socket
import sys
import time
from collections.abc import Sequence
from functools import partial

from common.training import distributed
from common.workload import Workload
from transfer.doctor.deep.children import Answer, in_processes
from transfer.doctor.deep.exchange import between_processes, judge, measure
from transfer.doctor.deep.guard import guarded
from transfer.doctor.deep.losses import losses
from transfer.doctor.deep.operators import operators
from transfer.doctor.deep.speed import speeds
from transfer.doctor.finding import Finding
from transfer.doctor.machine import usable_cores
from transfer.doctor.software import SETUP, in_a_line

ENOUGH = 100.0
"""Seconds after which a GPU begins nothing new but what is short."""
PATIENCE = 300.0
"""Seconds after which a GPU is taken to hang."""
EXCHANGE_PATIENCE = 120.0

Looked = tuple[list[Finding], "float | None"]


def look(workloads: Sequence[Workload]) -> list[Finding]:
    """The findings of this machine; under torchrun or srun of all machines, given to the first process.

    Every GPU is looked at by a process of its own, all at once.
    """
    try:
        import torch
    except Exception as error:
        return [Finding("deep", "missing", f"cannot import torch: {in_a_line(error)}", SETUP)]
    place = distributed.read_distributed_environment()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if place is not None and place.world_size > 1:
        return _one_of_many(workloads, place, count)
    if not count:
        say("all-reduce between 2 processes")
        exchange = judge(between_processes(2, EXCHANGE_PATIENCE), None)
        return [*_on_cpu(workloads), exchange, *_skipped(workloads)]
    say(f"{count} GPU(s), each in a process of its own")
    findings, fastest = _on_gpus(workloads, range(count))
    say(f"all-reduce between {count} process(es)")
    return [*findings, judge(between_processes(count, EXCHANGE_PATIENCE), fastest)]


def _on_gpus(workloads: Sequence[Workload], indices: Sequence[int]) -> Looked:
    """The findings of these GPUs, and the seconds of SimSiam's fastest step on the slowest of them."""
    findings: list[Finding] = []
    steps: list[float] = []
    threads = str(max(1, usable_cores() // len(indices)))
    env = [{"OMP_NUM_THREADS": threads} for _ in indices]
    answers = in_processes(on_gpu, [(workloads, index) for index in indices], PATIENCE, env)
    for index, answer in zip(indices, answers, strict=True):
        found, step = answer.value or ([_lost(f"cuda:{index}", answer)], None)
        findings += found
        steps += [step] if step else []
    return findings, max(steps, default=None)


def _lost(device: str, answer: Answer) -> Finding:
    advice = "see nvidia-smi and `dmesg | grep -i xid`; try again with CUDA_LAUNCH_BLOCKING=1, and without this GPU"
    return Finding(device, "wrong", answer.error, advice)


def on_gpu(workloads: Sequence[Workload], index: int) -> Looked:
    """The findings of one GPU, and the seconds of SimSiam's, the first workload's, fastest step on it."""
    import torch

    device, start = f"cuda:{index}", time.monotonic()
    torch.cuda.set_device(index)
    findings = guarded(f"torchvision on {device}", lambda: [operators(device)])
    for workload in workloads:
        say(f"{workload.name} on {device} against the CPU")
        findings += guarded(f"{workload.name} on {device}", partial(losses, workload, device))
    steps: dict[str, list[float]] = {workload.name: [] for workload in workloads}
    for workload in reversed(workloads):  # SimSiam's last way is compiled, which may take all the time there is
        subject, taken = f"{workload.name} on {device}, speed", steps[workload.name]
        say(subject)
        findings += guarded(subject, partial(speeds, workload, device, start + ENOUGH, taken))
    return findings, min(steps[workloads[0].name], default=None)


def _on_cpu(workloads: Sequence[Workload]) -> list[Finding]:
    findings = []
    for workload in workloads:
        say(f"{workload.name} on the CPU, twice")
        findings += guarded(f"{workload.name} on cpu", partial(losses, workload, "cpu"))
    return findings


def _skipped(workloads: Sequence[Workload]) -> list[Finding]:
    why = "no GPU here: ask on a GPU node"
    findings = [Finding("GPU against CPU", "skipped", why)]
    for workload in workloads:
        if not workload.on_cpu:
            findings.append(Finding(f"{workload.name} AMP", "skipped", f"its trainer has it on GPUs alone; {why}"))
        findings.append(Finding(f"{workload.name} speed and memory", "skipped", f"{why} ({workload.real})"))
    return [*findings, Finding("NCCL", "skipped", f"it joins GPUs; {why}")]


def _one_of_many(workloads: Sequence[Workload], place: distributed.DistributedEnvironment, gpus: int) -> list[Finding]:
    """One process of torchrun's or Slurm's: its own GPU first (the first process without GPUs: its CPU), then together.

    The GPU is looked at in a process that is alone: a trainer would else average over all of them.
    """
    found: list[Finding] = []
    step: float | None = None
    if gpus:
        found, step = _on_gpus(workloads, [place.local_rank if gpus > 1 else 0])
    elif place.rank == 0:
        found = _on_cpu(workloads)
    name = f"{socket.gethostname()}, process {place.local_rank}"
    found = [dataclasses.replace(one, subject=f"{one.subject} ({name})") for one in found]
    gathered: list[Finding] = distributed.launch(_together, (found, step))
    return [*gathered, *([] if gpus else _skipped(workloads))] if place.rank == 0 else found


def _together(found: list[Finding], step: float | None) -> list[Finding]:
    """Exchange, and gather what was found; the first process gets it."""
    from detectron2.utils import comm

    exchange = judge(Answer(measure()), step)
    return [*(one for part in comm.gather(found) for one in part), exchange]


def say(what: str) -> None:
    """A line of progress."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {what}\n")
    sys.stderr.flush()
