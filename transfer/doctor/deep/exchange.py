"""How fast gradients go between processes: all-reduce over NCCL between GPUs, over gloo between processes of a CPU."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.training import distributed
from transfer.doctor.deep.children import Answer, in_processes
from transfer.doctor.finding import Finding

if TYPE_CHECKING:
    import torch

MIB = 1 << 20
BUCKET, GRADIENTS = 25 * MIB, 152_797_440
"""Bytes: DistributedDataParallel's bucket, and the gradients of SimSiam's ResNet-50 with its heads, float32."""
SUBJECT = "all-reduce"
TIMED = 10
NORMAL = (
    "below the slowest link's peak a direction (vendors: NVLink of an A100 300, of an H100 450, PCIe 4.0 × 16 32, "
    "5.0 × 16 64 GB/s); what NCCL reaches of it here: unknown"
)
MEND = (
    "see `nvidia-smi topo -m` (NVLink rather than SYS), run with NCCL_DEBUG=INFO (P2P/NVLS within a node, IB rather "
    "than Socket between nodes; NCCL_SOCKET_IFNAME names the interface)"
)


@dataclass(frozen=True)
class Exchange:
    """What an all-reduce took.

    Attributes:
        backend: nccl or gloo.
        processes: how many took part.
        seconds: for each number of bytes.
        right: whether the sums were right.
    """

    backend: str
    processes: int
    seconds: dict[int, float]
    right: bool

    def bandwidth(self, size: int) -> float:
        """Bytes a second on each link of a ring, `busbw` of NVIDIA's nccl-tests: 2(n − 1)/n of the data pass it."""
        return size / self.seconds[size] * 2 * (self.processes - 1) / self.processes


def between_processes(count: int, seconds: float) -> Answer:
    """All-reduce between `count` processes of this machine, one a GPU where there are GPUs: an `Exchange`."""
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
    answers = in_processes(_join_and_measure, [()] * count, seconds, env)
    return next((answer for answer in answers if answer.error), answers[0])


def _join_and_measure() -> Exchange:
    exchange: Exchange = distributed.launch(measure)
    return exchange


def measure(sizes: tuple[int, ...] = (BUCKET, GRADIENTS)) -> Exchange:
    """All-reduce in the process group there is; alone, in a group of one."""
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.is_available()
    alone = not dist.is_initialized()
    if alone:
        store = dist.HashStore()
        dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=0, world_size=1)
    try:
        device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        timed = {size: _timed(size, device) for size in sizes}
        right = all(right for _, right in timed.values())
        seconds = {size: taken for size, (taken, _) in timed.items()}
        return Exchange(dist.get_backend(), dist.get_world_size(), seconds, right)
    finally:
        if alone:
            dist.destroy_process_group()


def _timed(size: int, device: torch.device) -> tuple[float, bool]:
    """Seconds an all-reduce of `size` bytes takes, and whether the first one's sum is right."""
    import torch
    import torch.distributed as dist

    count = dist.get_world_size()
    values = torch.full((size // 4,), float(dist.get_rank() + 1), device=device)
    dist.all_reduce(values)
    right = bool((values == count * (count + 1) / 2).all())
    values.zero_()
    dist.all_reduce(values)
    _wait(device)
    start = time.perf_counter()
    for _ in range(TIMED):
        dist.all_reduce(values)
    _wait(device)
    return (time.perf_counter() - start) / TIMED, right


def _wait(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def judge(answer: Answer, step: float | None) -> Finding:
    """What an exchange says.

    Args:
        answer: of `between_processes`.
        step: seconds of SimSiam's fastest step on these GPUs; None where none was timed.
    """
    if answer.error:
        return Finding(SUBJECT, "wrong", f"broke: {answer.error}", MEND)
    done: Exchange = answer.value
    who = f"{done.backend} between {done.processes} processes"
    if not done.right:
        return Finding(SUBJECT, "wrong", f"{who}: a sum is wrong", MEND)
    if done.processes == 1:
        return Finding(SUBJECT, "ok", f"{done.backend} starts and sums; with one GPU there is nothing to exchange")
    told = f"{done.bandwidth(BUCKET) / 1e9:.2f} GB/s on buckets of {BUCKET // MIB} MiB"
    taken = done.seconds[GRADIENTS]
    told += f", {done.bandwidth(GRADIENTS) / 1e9:.2f} on SimSiam's {GRADIENTS / 1e6:.0f} MB ({taken * 1e3:.1f} ms)"
    if done.backend == "gloo":
        return Finding(SUBJECT, "ok", f"{who}: {told}", normal="unknown: it is memory traffic on one machine")
    if step is not None and taken > step / 2:
        share = f"{who}: {told}: {taken / step:.1f} of SimSiam's fastest step"
        return Finding(
            SUBJECT, "warning", share, MEND, f"at most half a step, beside whose backward pass it runs; {NORMAL}"
        )
    return Finding(SUBJECT, "ok", f"{who}: {told}", normal=NORMAL)
