"""Bandwidth of all-reduce: over NCCL between GPUs, over gloo between processes on a CPU."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssl_transfer.training import distributed
from tests.gpu.processes import ProcessResult, run_in_processes
from transfer.doctor.finding import Finding

if TYPE_CHECKING:
    import torch

MIB = 1 << 20
BUCKET, GRADIENTS = 25 * MIB, 152_797_440
"""Bytes: a bucket of DistributedDataParallel, and the float32 gradients of SimSiam with a ResNet-50."""
SUBJECT = "all-reduce"
TIMED = 10
NORMAL = (
    "below the slowest link's peak a direction (vendors: NVLink of an A100 300, of an H100 450, PCIe 4.0 × 16 32, "
    "5.0 × 16 64 GB/s); what NCCL reaches of it here is unknown"
)
ADVICE = (
    "check `nvidia-smi topo -m` (NVLink rather than SYS), run with NCCL_DEBUG=INFO (P2P/NVLS within a node, IB rather "
    "than Socket between nodes; NCCL_SOCKET_IFNAME names the interface)"
)


@dataclass(frozen=True)
class AllReduceTiming:
    """Timing of an all-reduce.

    Attributes:
        backend: nccl or gloo.
        processes: size of the process group.
        seconds: time by number of bytes.
        right: whether the sums are correct.
    """

    backend: str
    processes: int
    seconds: dict[int, float]
    right: bool

    def bandwidth(self, size: int) -> float:
        """Bytes per second on each link of a ring, `busbw` of NVIDIA's nccl-tests: 2(n − 1)/n of the data pass it."""
        return size / self.seconds[size] * 2 * (self.processes - 1) / self.processes


def all_reduce_between_processes(count: int, seconds: float) -> ProcessResult:
    """Time all-reduce between `count` processes of this machine, one per GPU where there are GPUs."""
    port = str(distributed.find_free_port())
    env = [
        {
            "RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        for rank in range(count)
    ]
    answers = run_in_processes(_join_and_measure, [()] * count, seconds, env)
    return next((answer for answer in answers if answer.error), answers[0])


def _join_and_measure() -> AllReduceTiming:
    exchange: AllReduceTiming = distributed.launch(measure_all_reduce)
    return exchange


def measure_all_reduce(sizes: tuple[int, ...] = (BUCKET, GRADIENTS)) -> AllReduceTiming:
    """Time all-reduce in the current process group, or in a group of one where there is none."""
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.is_available()
    single = not dist.is_initialized()
    if single:
        store = dist.HashStore()
        dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=0, world_size=1)
    try:
        device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        timed = {size: _time_all_reduce(size, device) for size in sizes}
        right = all(right for _, right in timed.values())
        seconds = {size: taken for size, (taken, _) in timed.items()}
        return AllReduceTiming(dist.get_backend(), dist.get_world_size(), seconds, right)
    finally:
        if single:
            dist.destroy_process_group()


def _time_all_reduce(size: int, device: torch.device) -> tuple[float, bool]:
    """Seconds that an all-reduce of `size` bytes takes, and whether the first sum is correct."""
    import torch
    import torch.distributed as dist

    count = dist.get_world_size()
    values = torch.full((size // 4,), float(dist.get_rank() + 1), device=device)
    dist.all_reduce(values)
    right = bool((values == count * (count + 1) / 2).all())
    values.zero_()
    dist.all_reduce(values)
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(TIMED):
        dist.all_reduce(values)
    _synchronize(device)
    return (time.perf_counter() - start) / TIMED, right


def _synchronize(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def all_reduce_finding(answer: ProcessResult, step: float | None) -> Finding:
    """The finding for a timed all-reduce.

    Args:
        answer: the result of `all_reduce_between_processes`.
        step: seconds of SimSiam's fastest step on these GPUs; None where it was not timed.
    """
    if answer.error:
        return Finding(SUBJECT, "wrong", f"failed: {answer.error}", ADVICE)
    done: AllReduceTiming = answer.value
    who = f"{done.backend} between {done.processes} processes"
    if not done.right:
        return Finding(SUBJECT, "wrong", f"{who}: a sum is wrong", ADVICE)
    if done.processes == 1:
        return Finding(SUBJECT, "ok", f"{done.backend} starts and sums; with one GPU there is nothing to communicate")
    rates = f"{done.bandwidth(BUCKET) / 1e9:.2f} GB/s on buckets of {BUCKET // MIB} MiB"
    taken = done.seconds[GRADIENTS]
    rates += f", {done.bandwidth(GRADIENTS) / 1e9:.2f} on SimSiam's {GRADIENTS / 1e6:.0f} MB ({taken * 1e3:.1f} ms)"
    if done.backend == "gloo":
        return Finding(SUBJECT, "ok", f"{who}: {rates}", normal="unknown: memory traffic on one machine")
    if step is not None and taken > step / 2:
        share = f"{who}: {rates}: {taken / step:.1f} of SimSiam's fastest step"
        return Finding(
            SUBJECT, "warning", share, ADVICE, f"at most half a step, beside whose backward pass it runs; {NORMAL}"
        )
    return Finding(SUBJECT, "ok", f"{who}: {rates}", normal=NORMAL)
