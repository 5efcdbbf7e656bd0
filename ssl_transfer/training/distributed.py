"""One process per GPU, started by torchrun, by Slurm or spawned here; gloo on a CPU. Importing it imports no torch."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import multiprocessing.connection
import os
import pickle
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from ssl_transfer.errors import EXIT_INTERRUPTED, EXIT_REQUEUE, Preempted, StorageError, UserError, storage_error

T = TypeVar("T")

DUMP_STACKS = signal.SIGRTMIN + 4
"""Requests the stacks of a process (ssl_transfer/training/watch.py). Forked loader workers inherit the handler."""

LEAVE_SECONDS = 30
"""How long a process may take to abort its group after an error, and again to exit; then SIGALRM ends it."""
GRACE_SECONDS = 5.0
"""How long spawned processes may take to end by themselves after one of them failed, and again after SIGTERM."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
"""SIGTERM: a scheduler or an operator; SIGUSR2: what submitit asks Slurm to send before a job's time is up."""


TIMEOUT = 600.0
"""Seconds that a collective waits for the other processes."""


@dataclass(frozen=True)
class DistributedEnvironment:
    """The rank of this process and the size of the job.

    Attributes:
        rank: 0 … world_size-1 over all nodes.
        world_size: number of processes.
        local_rank: 0 … local_size-1 on this node; the index of its GPU.
        local_size: number of processes on this node.
        init_method: of torch.distributed; None for a single process.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1
    init_method: str | None = None


def read_distributed_environment() -> DistributedEnvironment | None:
    """Read the environment that torchrun or srun set for this process; None when neither started it.

    torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT. A task of srun has
    SLURM_PROCID, SLURM_LOCALID and the SLURM_STEP_ variables. A batch script and an interactive shell also have the
    job's SLURM_ variables, but are one process: only the step's are used.

    Raises:
        UserError: Slurm distributed the tasks unevenly over the nodes.
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env and "MASTER_ADDR" in env:
        size = int(env["WORLD_SIZE"])
        local_size = int(env.get("LOCAL_WORLD_SIZE", size))
        init_method = "env://" if size > 1 else None
        return DistributedEnvironment(int(env["RANK"]), size, int(env.get("LOCAL_RANK", 0)), local_size, init_method)
    size = int(env.get("SLURM_STEP_NUM_TASKS", 1))
    if "SLURM_PROCID" in env and size > 1:
        local_size = parse_tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", str(size)))
        host = first_host(env.get("SLURM_STEP_NODELIST", "127.0.0.1"))
        # Two steps on one host need different ports; the range lies below the ephemeral ports.
        port = 10000 + (int(env.get("SLURM_JOB_ID", 0)) + 101 * int(env.get("SLURM_STEP_ID", 0))) % 20000
        rank, local_rank = int(env["SLURM_PROCID"]), int(env["SLURM_LOCALID"])
        return DistributedEnvironment(rank, size, local_rank, local_size, f"tcp://{host}:{port}")
    return None


def parse_tasks_per_node(text: str) -> int:
    """The number of tasks on each node, from Slurm's form such as `4` or `4(x2)`.

    Raises:
        UserError: the number differs between nodes, such as `4,3`.
    """
    counts = {part.partition("(")[0] for part in text.split(",")}
    if len(counts) != 1:
        raise UserError(f"Slurm gave {text} tasks to the nodes; request the same number on each (--ntasks-per-node)")
    return int(counts.pop())


def first_host(nodelist: str) -> str:
    """The first host of a Slurm node list such as `gpu[003-007,9],login1` or `rack[1-2]node[05-08]`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodelist)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first.group() if first else nodelist)


def launch(
    main: Callable[..., Any], args: tuple[Any, ...] = (), num_processes: int = 1, timeout: float = TIMEOUT
) -> Any:
    """Run `main(*args)` in every process of the job, then destroy the process group; after an error, abort it.

    Under torchrun or Slurm this process is already one of the job's. Otherwise `num_processes` processes are spawned on
    this machine or, for one, `main` runs in this process. To be spawned, `main` must be importable (module level).

    Args:
        main: what every process runs.
        args: its arguments; picklable when processes are spawned.
        num_processes: number of processes to spawn unless torchrun or Slurm started them: one per GPU, or gloo on a
            CPU.
        timeout: seconds that a collective waits for the other processes.

    Returns:
        The value of `main` when it ran in this process; None when processes were spawned.

    Raises:
        UserError: fewer GPUs than processes on a machine with GPUs, `num_processes` contradicts torchrun or Slurm, or
            a spawned process raised it.
        Preempted: a spawned process raised it; all processes have ended.
    """
    environment = read_distributed_environment()
    if environment is not None:
        if num_processes > 1 and num_processes not in (environment.local_size, environment.world_size):
            started = f"{environment.world_size} processes are running already (torchrun or Slurm started them)"
            raise UserError(f"--num-gpus {num_processes}: {started}; leave --num-gpus out")
        return _run(environment, main, args, timeout)
    if num_processes <= 1:
        return _run(DistributedEnvironment(), main, args, timeout)
    return _spawn(main, args, num_processes, timeout)


def _spawn(main: Callable[..., Any], args: tuple[Any, ...], count: int, timeout: float) -> None:
    import torch
    import torch.multiprocessing as mp

    available = torch.cuda.device_count()
    if available and count > available:
        raise UserError(f"--num-gpus {count}: this machine has {available} GPU(s); request at most that many")
    init_method = f"tcp://127.0.0.1:{find_free_port()}"
    errors = mp.get_context("spawn").SimpleQueue()
    try:
        child_args = (count, init_method, errors, main, args, timeout)
        children = mp.start_processes(_run_child, args=child_args, nprocs=count, join=False, start_method="spawn")
        with _forward_stop_signals(children.pids()):
            while not _join(children):
                pass
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
        first = _first_error(errors)  # other processes failed only because that one left
        if isinstance(first, UserError):
            raise first from None
        if first is None and isinstance(error, mp.ProcessExitedException) and error.exit_code == EXIT_REQUEUE:
            sys.exit(EXIT_REQUEUE)  # it hung, and said so
        raise (_error_of_process(first, children) if isinstance(first, int) else None) or error from None
    first = _first_error(errors)
    if isinstance(first, Preempted):
        raise first


def _first_error(errors: Any) -> UserError | Preempted | int | None:
    """What a spawned process raised before all others did; the rank of one whose error keeps its traceback."""
    found = []
    while not errors.empty():
        found.append(errors.get())
    _, rank, error = min(found, key=lambda one: one[0], default=(0.0, None, None))
    return error or rank


def _error_of_process(rank: int, children: Any) -> Exception | None:
    """What torch raises where this process is the first to end; None if it was killed before it wrote its traceback."""
    from torch.multiprocessing import ProcessRaisedException

    file = Path(children.error_files[rank])
    if not (file.exists() and file.stat().st_size):
        return None
    text = f"\n\n-- Process {rank} terminated with the following error:\n{pickle.loads(file.read_bytes())}"
    return ProcessRaisedException(text, rank, children.processes[rank].pid)


def _join(children: Any) -> bool:
    """Wait for spawned processes as `ProcessContext.join` does; if one hung, the others write their stacks first."""
    multiprocessing.connection.wait([child.sentinel for child in children.processes])
    if any(child.exitcode == EXIT_REQUEUE for child in children.processes):
        for child in children.processes:
            if child.is_alive():
                request_stacks(child.pid)
        time.sleep(1)
    return bool(children.join(grace_period=GRACE_SECONDS))


def request_stacks(pid: int) -> None:
    """Make a process write its stacks, also one that is stopped (SIGSTOP). Without a hang watch it ends it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, DUMP_STACKS)
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def _forward_stop_signals(pids: list[int]) -> Iterator[None]:
    """Ask the spawned processes to save and leave where this one is asked to; it waits for them."""

    def forward(number: int) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    with handle_stop(lambda: forward(signal.SIGTERM), lambda: forward(signal.SIGKILL)):
        yield


@contextlib.contextmanager
def handle_stop(stop: Callable[[], None], leave: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Call `stop` on SIGTERM, SIGUSR2 and the first Ctrl-C while the block runs; a second Ctrl-C leaves at once.

    Ctrl-C is left alone where another handler than Python's own is installed (a debugger, a launcher), or none.

    Args:
        stop: requests a checkpoint and the end.
        leave: called before this process leaves.
    """
    interrupted: list[int] = []
    environment = read_distributed_environment()
    speaks = environment is None or environment.rank == 0

    def interrupt(_number: int, _frame: Any) -> None:
        if interrupted and environment is None:  # torchrun passes on what the terminal has sent already
            leave()
            kill_workers()
            os._exit(EXIT_INTERRUPTED)
        if not interrupted and speaks:
            os.write(2, b"\nstopping: this step ends and a checkpoint is saved; Ctrl-C again leaves at once\n")
        interrupted.append(signal.SIGINT)
        stop()

    with contextlib.ExitStack() as stack:
        stack.enter_context(handle_signals(STOP_SIGNALS, lambda _number, _frame: stop()))
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            stack.enter_context(handle_signals([signal.SIGINT], interrupt))
        yield


@contextlib.contextmanager
def handle_signals(numbers: Iterable[signal.Signals], handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Handle signals with `handler` while the block runs. Off the main thread Python allows none: nothing is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _run_child(
    rank: int,
    count: int,
    init_method: str,
    errors: Any,
    main: Callable[..., Any],
    args: tuple[Any, ...],
    timeout: float,
) -> None:
    """One spawned process. Errors go to the parent through the queue; those of one line without a traceback."""

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent passes a Ctrl-C on

    def run(*args: Any) -> None:
        try:
            main(*args)
        except Exception as error:
            known = storage_error(error) or error
            kind = next((kind for kind in (StorageError, UserError, Preempted) if isinstance(known, kind)), None)
            errors.put((time.monotonic(), rank, kind(str(known)) if kind else None))
            raise known from error

    try:
        _run(DistributedEnvironment(rank, count, rank, count, init_method), run, args, timeout)
    except UserError:
        sys.exit(1)  # ends the other processes, which may wait for this one indefinitely
    except Preempted:
        pass  # the others stop too; one may still be writing the checkpoint


def _run(environment: DistributedEnvironment, main: Callable[..., Any], args: tuple[Any, ...], timeout: float) -> Any:
    try:
        return main(*args) if environment.world_size == 1 else _run_in_group(environment, main, args, timeout)
    finally:
        kill_workers()


def _run_in_group(
    environment: DistributedEnvironment, main: Callable[..., Any], args: tuple[Any, ...], timeout: float = TIMEOUT
) -> Any:
    import torch
    import torch.distributed as dist
    from detectron2.utils import comm

    cuda = torch.cuda.is_available()
    if cuda:
        # Slurm may make only its own GPU visible to each task, which is number 0 then.
        torch.cuda.set_device(environment.local_rank if torch.cuda.device_count() > 1 else 0)
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=environment.init_method,
        rank=environment.rank,
        world_size=environment.world_size,
        timeout=timedelta(seconds=timeout),
    )
    comm.create_local_process_group(environment.local_size)
    try:
        comm.synchronize()
        value = main(*args)
    except Preempted:  # in all processes, after the same iteration
        _destroy_group()
        raise
    except BaseException:
        _abort_group()
        raise
    _destroy_group()
    return value


def _destroy_group() -> None:
    """Destroy the process group, with what Detectron2 keeps of it.

    A thread of gloo that still lives when the interpreter ends may abort the process; it ends with the last reference.
    """
    import torch.distributed as dist
    from detectron2.utils import comm

    dist.destroy_process_group()
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()


def _abort_group() -> None:
    """Leave the process group after an error without waiting for the other processes, which may not know of it.

    `destroy_process_group` would wait for collectives that they never join (PyTorch issue 122358). NCCL's are aborted;
    gloo's end with this process, and its `abort` would wait as well. The alarm ends a process that cannot exit: a
    thread of torch may wait for the others, too.
    """
    import torch.distributed as dist

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(2 * LEAVE_SECONDS)
    if dist.get_backend() == "nccl":
        abort = threading.Thread(target=dist.distributed_c10d._abort_process_group, daemon=True)
        abort.start()
        abort.join(LEAVE_SECONDS)


def find_free_port() -> int:
    """A TCP port of this machine on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ignore_stop_signals(_worker: int) -> None:
    """`worker_init_fn` of a data loader: its workers ignore signals sent to the whole process group.

    The trainer needs them to finish its step. Whoever starts such a loader must also end it: at exit Python would send
    SIGTERM to the workers and wait for them. `kill_workers` ends those that are left.
    """
    for number in (*STOP_SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def start_workers(loader: Iterable[T]) -> Iterator[T]:
    """Return the loader's iterator. The worker processes it forks never collect the objects they inherit.

    Their memory then stays shared, and no object of an extension module is destroyed in a process that did not make it.
    """
    gc.freeze()
    try:
        return iter(loader)
    finally:
        gc.unfreeze()


def kill_workers() -> None:
    """Kill every daemon child process that is left, such as loader workers, which ignore SIGTERM."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
            child.join()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread while the block runs. `one_thread()(function)` is the function with that limit."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
