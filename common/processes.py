"""One process a GPU, started the same way under torchrun, Slurm (submitit tasks) or by `--num-gpus`; gloo on a CPU."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from common.errors import Preempted, UserError

T = TypeVar("T")
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

    torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT. A task that srun started
    has SLURM_PROCID, SLURM_LOCALID and the SLURM_STEP_ variables; a batch script or an interactive shell has the job's
    numbers too, but is one process, so only the step's are believed.

    Raises:
        UserError: Slurm's tasks are spread unevenly over the nodes.
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env and "MASTER_ADDR" in env:
        size = int(env["WORLD_SIZE"])
        local_size = int(env.get("LOCAL_WORLD_SIZE", size))
        return Place(int(env["RANK"]), size, int(env.get("LOCAL_RANK", 0)), local_size, "env://" if size > 1 else None)
    size = int(env.get("SLURM_STEP_NUM_TASKS", 1))
    if "SLURM_PROCID" in env and size > 1:
        local_size = tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", str(size)))
        host = first_host(env.get("SLURM_STEP_NODELIST", "127.0.0.1"))
        # Two steps at once on one host must not meet at one port; the range lies below the ephemeral ports.
        port = 10000 + (int(env.get("SLURM_JOB_ID", 0)) + 101 * int(env.get("SLURM_STEP_ID", 0))) % 20000
        return Place(int(env["SLURM_PROCID"]), size, int(env["SLURM_LOCALID"]), local_size, f"tcp://{host}:{port}")
    return None


def tasks_per_node(text: str) -> int:
    """How many tasks each node has, from Slurm's form such as `4` or `4(x2)`.

    Raises:
        UserError: not the same number on every node, such as `4,3`.
    """
    counts = {part.partition("(")[0] for part in text.split(",")}
    if len(counts) != 1:
        raise UserError(f"Slurm gave {text} tasks to the nodes; ask for the same number on each (--ntasks-per-node)")
    return int(counts.pop())


def first_host(nodelist: str) -> str:
    """The first host of a Slurm node list such as `gpu[003-007,9],login1` or `rack[1-2]node[05-08]`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodelist)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first.group() if first else nodelist)


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
        UserError: fewer GPUs than processes on a machine with GPUs, `num_processes` against what torchrun or Slurm
            started, or a spawned process raised it.
        Preempted: a spawned process raised it; the others were waited for.
    """
    place = place_from_environment()
    if place is not None:
        if num_processes > 1 and num_processes not in (place.local_size, place.world_size):
            started = f"{place.world_size} processes are running already (torchrun or Slurm started them)"
            raise UserError(f"--num-gpus {num_processes}: {started}; leave --num-gpus out")
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
    rendezvous = f"tcp://127.0.0.1:{free_port()}"
    said = mp.get_context("spawn").SimpleQueue()
    try:
        words = (count, rendezvous, said, main, args)
        children = mp.start_processes(_child, args=words, nprocs=count, join=False, start_method="spawn")
        with _stops_passed_on(children.pids()):
            while not children.join():
                pass
    except (mp.ProcessRaisedException, mp.ProcessExitedException):
        _reraise(said, UserError)  # what else broke, broke because that process left
        raise
    _reraise(said, Preempted)


@contextlib.contextmanager
def _stops_passed_on(pids: list[int]) -> Iterator[None]:
    """SIGTERM and SIGUSR2 to this process alone are for the spawned ones, who save and leave; it waits for them."""

    def pass_on(number: int, _frame: Any) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    if threading.current_thread() is not threading.main_thread():  # Python lets no other set handlers
        yield
        return
    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _reraise(said: Any, kind: type[Exception]) -> None:
    """Raise the first of the processes' words for the user that is of this kind."""
    while not said.empty():
        word = said.get()
        if isinstance(word, kind):
            raise word


def _child(rank: int, count: int, rendezvous: str, said: Any, main: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """One spawned process. What the user should read in one line goes to the parent as such, not as a traceback."""
    try:
        _joined(Place(rank, count, rank, count, rendezvous), main, args)
    except UserError as error:
        said.put(UserError(str(error)))
        sys.exit(1)  # ends the others, who may wait for this one for ever
    except Preempted as stop:
        said.put(Preempted(str(stop)))  # the others stop by themselves; one may still be writing the checkpoint


def _joined(place: Place, main: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Join the process group (if there is one to join), run, leave; no loader process stays behind."""
    try:
        return main(*args) if place.world_size == 1 else _in_a_group(place, main, args)
    finally:
        end_loaders()


def _in_a_group(place: Place, main: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    import torch
    import torch.distributed as dist
    from detectron2.utils import comm

    cuda = torch.cuda.is_available()
    if cuda:
        # Slurm may show each task its own GPU alone, which is number 0 then.
        torch.cuda.set_device(place.local_rank if torch.cuda.device_count() > 1 else 0)
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


def free_port() -> int:
    """A TCP port of this machine that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def leave_signals_to_the_trainer(_worker: int) -> None:
    """For a loader's `worker_init_fn`: a signal to the whole process group must let the trainer finish its step.

    Its workers are still needed for it. Who starts such a loader must end it too: Python, when it leaves, would ask the
    workers by SIGTERM and wait for them. `end_loaders` is for those that were forgotten, or did not hear.
    """
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def forked(loader: Iterable[T]) -> Iterator[T]:
    """A loader's iterator. Its processes start here, and their garbage collectors leave alone what they inherit.

    Objects of DALI's, for one, end a forked process by a segmentation fault when they are destroyed in it.
    """
    gc.freeze()
    try:
        return iter(loader)
    finally:
        gc.unfreeze()


def end_loaders() -> None:
    """End every loader process of this one that is left, whatever it ignores: nothing waits for it any more."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
            child.join()
