"""One process a GPU, started the same way under torchrun, Slurm (submitit tasks) or by `--num-gpus`; gloo on a CPU."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from common.errors import UserError

TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Place:
    """One process's place among all of them.

    Attributes:
        rank: 0 … world_size-1 over all nodes.
        world_size: how many processes there are.
        local_rank: 0 … local_size-1 on this node; the index of its GPU.
        local_size: how many processes this node has.
        rendezvous: an init_method for torch.distributed; None when the process is alone.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1
    rendezvous: str | None = None


def place_from_environment() -> Place | None:
    """The place that torchrun or Slurm gave this process; None when neither did.

    torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT. A Slurm task has
    SLURM_PROCID, SLURM_NTASKS and SLURM_LOCALID; the job's first host is where the processes meet, and the port is
    derived from the job's number, so that two jobs on one host do not collide.
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env and "MASTER_ADDR" in env:
        size = int(env["WORLD_SIZE"])
        local_size = int(env.get("LOCAL_WORLD_SIZE", size))
        return Place(int(env["RANK"]), size, int(env.get("LOCAL_RANK", 0)), local_size, "env://" if size > 1 else None)
    if "SLURM_PROCID" in env and int(env.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_ID" in env:
        size = int(env["SLURM_NTASKS"])
        local_size = int(env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_NTASKS_PER_NODE", "1")).split("(")[0].split(",")[0])
        job = int(env.get("SLURM_JOB_ID", 0))
        host = first_host(env.get("SLURM_STEP_NODELIST", env.get("SLURM_NODELIST", "127.0.0.1")))
        return Place(int(env["SLURM_PROCID"]), size, int(env["SLURM_LOCALID"]), local_size, f"tcp://{host}:{20000 + job % 20000}")
    return None


def first_host(nodelist: str) -> str:
    """The first host of a Slurm node list such as `gpu[003-007,9],login1`."""
    head, bracket, rest = nodelist.partition("[")
    if not bracket or "," in head:
        return head.split(",")[0]
    return head + rest.split("]")[0].split(",")[0].split("-")[0]


def start(main: Callable[..., Any], args: tuple[Any, ...] = (), num_processes: int = 1) -> Any:
    """Run `main(*args)` in every process of the job and tear the process group down after it.

    Under torchrun or Slurm this process is one of many already. Otherwise `num_processes` are spawned on this machine,
    or, for one, `main` runs right here. `main` must be importable (module level) to be spawned.

    Args:
        main: what every process runs.
        args: its arguments; must be picklable when processes are spawned.
        num_processes: how many to spawn when nobody has started them already; one a GPU, or gloo on a CPU.

    Returns:
        What `main` returned, when it ran in this process; None when processes were spawned.

    Raises:
        UserError: fewer GPUs than processes on a machine with GPUs.
    """
    place = place_from_environment()
    if place is not None:
        return _joined(place, main, args)
    if num_processes <= 1:
        return _joined(Place(), main, args)
    return _spawned(main, args, num_processes)


def _spawned(main: Callable[..., Any], args: tuple[Any, ...], count: int) -> None:
    import torch
    import torch.multiprocessing as mp

    available = torch.cuda.device_count()
    if available and count > available:
        raise UserError(f"--num-gpus {count}: this machine has {available} GPU(s); ask for at most that many")
    rendezvous = f"tcp://127.0.0.1:{_free_port()}"
    mp.start_processes(_child, args=(count, rendezvous, main, args), nprocs=count, start_method="spawn")


def _child(rank: int, count: int, rendezvous: str, main: Callable[..., Any], args: tuple[Any, ...]) -> None:
    _joined(Place(rank, count, rank, count, rendezvous), main, args)


def _joined(place: Place, main: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Join the process group (if there is one to join), run, leave."""
    if place.world_size == 1:
        return main(*args)
    import torch
    import torch.distributed as dist
    from detectron2.utils import comm

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(place.local_rank)
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=place.rendezvous,
        rank=place.rank,
        world_size=place.world_size,
        timeout=TIMEOUT,
    )
    comm.create_local_process_group(place.local_size)
    try:
        comm.synchronize()
        return main(*args)
    finally:
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
