"""Launching processes: the distributed environment, and two real gloo processes on a CPU."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ssl_transfer.errors import Preempted, UserError
from ssl_transfer.training import distributed
from ssl_transfer.training.distributed import (
    DistributedEnvironment,
    first_host,
    launch,
    parse_tasks_per_node,
    read_distributed_environment,
)

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def no_inherited_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test inherits an environment from torchrun or Slurm."""
    for name in list(os.environ):
        if name in NAMES or name.startswith("SLURM_"):
            monkeypatch.delenv(name)


def environ(monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


def step(monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
    """The environment of task 3 of 4 on two nodes, as srun makes it."""
    usual: dict[str, object] = {
        "SLURM_JOB_ID": 41,
        "SLURM_STEP_ID": 0,
        "SLURM_PROCID": 3,
        "SLURM_LOCALID": 1,
        "SLURM_NTASKS": 4,
        "SLURM_STEP_NUM_TASKS": 4,
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
        "SLURM_STEP_NODELIST": "gpu[07-08]",
    }
    environ(monkeypatch, **{**usual, **values})


def test_a_process_without_torchrun_or_slurm_has_no_environment() -> None:
    assert read_distributed_environment() is None


def test_the_environment_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    environ(monkeypatch, RANK=5, WORLD_SIZE=8, LOCAL_RANK=1, LOCAL_WORLD_SIZE=4, MASTER_ADDR="a", MASTER_PORT=1)
    assert read_distributed_environment() == DistributedEnvironment(5, 8, 1, 4, "env://")


def test_torchrun_with_one_process_needs_no_init_method(monkeypatch: pytest.MonkeyPatch) -> None:
    environ(monkeypatch, RANK=0, WORLD_SIZE=1, LOCAL_RANK=0, MASTER_ADDR="a")
    assert read_distributed_environment() == DistributedEnvironment()


def test_the_environment_of_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    step(monkeypatch)
    environment = read_distributed_environment()
    assert environment is not None and environment.init_method is not None
    assert (environment.rank, environment.world_size, environment.local_rank, environment.local_size) == (3, 4, 1, 2)
    assert environment.init_method.startswith("tcp://gpu07:")


def test_steps_and_jobs_have_their_own_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = set()
    for job, number in ((41, 0), (41, 1), (42, 0), (19999, 3)):
        step(monkeypatch, SLURM_JOB_ID=job, SLURM_STEP_ID=number)
        environment = read_distributed_environment()
        assert environment is not None and environment.init_method is not None
        ports.add(int(environment.init_method.rpartition(":")[2]))
    assert len(ports) == 4 and all(1024 < port < 32768 for port in ports)


def test_a_batch_script_or_interactive_shell_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """They see the job's numbers; joining by them would wait for tasks that do not exist."""
    environ(monkeypatch, SLURM_JOB_ID=41, SLURM_PROCID=0, SLURM_LOCALID=0, SLURM_NTASKS=4)
    assert read_distributed_environment() is None
    environ(monkeypatch, SLURM_STEP_ID=4294967290, SLURM_STEP_NUM_TASKS=1)
    assert read_distributed_environment() is None


def test_uneven_tasks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    step(monkeypatch, SLURM_STEP_TASKS_PER_NODE="2,1", SLURM_STEP_NUM_TASKS=3)
    with pytest.raises(UserError, match=r"2,1.*ntasks-per-node"):
        read_distributed_environment()


@pytest.mark.parametrize(("text", "count"), [("4", 4), ("8(x16)", 8), ("2(x2),2", 2)])
def test_tasks_per_node(text: str, count: int) -> None:
    assert parse_tasks_per_node(text) == count


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("login1", "login1"),
        ("a,b", "a"),
        ("gpu[003-007,9],login1", "gpu003"),
        ("gpu[9,11]", "gpu9"),
        ("a1,gpu[1-2]", "a1"),
        ("rack[1-2]node[05-08]", "rack1node05"),
        ("gpu[1-2]-ib", "gpu1-ib"),
    ],
)
def test_first_host(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host


def test_one_process_runs_right_here_and_returns() -> None:
    assert launch(lambda a, b: a + b, (1, 2)) == 3


def test_more_gpus_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match=r"--num-gpus 4: this machine has 2"):
        launch(print, num_processes=4)


def test_num_gpus_against_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    environ(monkeypatch, RANK=0, WORLD_SIZE=4, LOCAL_RANK=0, LOCAL_WORLD_SIZE=2, MASTER_ADDR="a", MASTER_PORT=1)
    with pytest.raises(UserError, match="4 processes are running already"):
        launch(print, num_processes=3)


def _sum_ranks(folder: str) -> None:
    import torch
    import torch.distributed as dist
    from detectron2.utils import comm

    value = torch.tensor([float(dist.get_rank() + 1)])
    dist.all_reduce(value)
    words = [dist.get_rank(), comm.get_local_rank(), comm.get_world_size(), comm.get_local_size(), value.item()]
    (Path(folder) / str(dist.get_rank())).write_text(" ".join(map(str, words)))


def _refuse_on_one(_: str) -> None:
    import torch
    import torch.distributed as dist

    if dist.get_rank() == 1:
        raise UserError("the file is missing")
    dist.all_reduce(torch.zeros(1))  # waits for a process that is gone


def _stop(folder: str) -> None:
    import torch.distributed as dist

    if dist.get_rank() == 0:
        time.sleep(1)  # still writing the checkpoint when the other has left
        (Path(folder) / "checkpoint").write_text("whole")
    raise Preempted("at iteration 7")


def _stop_on_signal(folder: str) -> None:
    import torch.distributed as dist

    received = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: received.set())
    (Path(folder) / f"ready{dist.get_rank()}").touch()
    if received.wait(60):
        (Path(folder) / f"saved{dist.get_rank()}").touch()
        raise Preempted("stop signal")


def _bug(_: str) -> None:
    import torch
    import torch.distributed as dist

    if dist.get_rank() == 1:
        dist.all_reduce(torch.zeros(1), async_op=True)  # gloo's abort would wait for the other process to join it
        raise ZeroDivisionError("ours")
    time.sleep(1)
    dist.all_reduce(torch.zeros(1))
    dist.all_reduce(torch.zeros(1))  # waits for a process that is gone


def test_two_processes_join_one_group(tmp_path: Path) -> None:
    assert launch(_sum_ranks, (str(tmp_path),), num_processes=2) is None
    assert (tmp_path / "0").read_text() == "0 0 2 2 3.0"
    assert (tmp_path / "1").read_text() == "1 1 2 2 3.0"


def test_a_user_error_in_a_process_stays_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^the file is missing$"):
        launch(_refuse_on_one, (str(tmp_path),), num_processes=2)


def test_a_stop_waits_for_every_process(tmp_path: Path) -> None:
    with pytest.raises(Preempted, match="at iteration 7"):
        launch(_stop, (str(tmp_path),), num_processes=2)
    assert (tmp_path / "checkpoint").read_text() == "whole"


def test_a_signal_to_the_first_process_reaches_those_it_spawned(tmp_path: Path) -> None:
    """Slurm and the local executor know only this process."""

    def tell() -> None:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("ready*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        if len(list(tmp_path.glob("ready*"))) == 2:  # else nothing listens, and the signal would end the tests
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    teller = threading.Thread(target=tell)
    teller.start()
    with pytest.raises(Preempted, match="stop signal"):
        launch(_stop_on_signal, (str(tmp_path),), num_processes=2)
    teller.join()
    assert sorted(path.name for path in tmp_path.glob("saved*")) == ["saved0", "saved1"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_bug_in_a_process_keeps_its_traceback_whichever_process_ends_first(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"(?s)Process 1 .*ZeroDivisionError: ours") as caught:
        launch(_bug, (str(tmp_path),), num_processes=2)
    assert not isinstance(caught.value, UserError)


UNDER_TORCHRUN = """
import time
from ssl_transfer.training.distributed import launch

def train():
    import torch
    import torch.distributed as dist

    if dist.get_rank() == 1:
        dist.all_reduce(torch.zeros(1), async_op=True)
        raise ZeroDivisionError(f"ours at {time.time()}")
    dist.all_reduce(torch.zeros(1))
    dist.all_reduce(torch.zeros(1))

launch(train)
"""


def test_an_exception_in_one_process_ends_it_and_those_that_wait_for_it(root: Path) -> None:
    """As torchrun and srun start them: nobody but the processes themselves ends them."""
    usual = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    usual["MASTER_PORT"] = str(distributed.find_free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", UNDER_TORCHRUN],
            env={**usual, "RANK": rank, "LOCAL_RANK": rank},
            cwd=root,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    errors = [process.communicate(timeout=100)[1] for process in processes]
    # A thread of gloo that still waits may abort the interpreter's exit, after the traceback was printed.
    assert processes[0].returncode == 1 and processes[1].returncode in (1, -signal.SIGABRT)
    raised = re.search(r"ZeroDivisionError: ours at ([\d.]+)", errors[1])
    assert raised is not None and time.time() - float(raised.group(1)) < 20
    assert "closed by peer" in errors[0] or "reset by peer" in errors[0]


THREADS = """
import glob
from ssl_transfer.training.distributed import launch

def names():
    return sorted(open(file).read().strip() for file in glob.glob("/proc/self/task/*/comm"))

def train():
    import torch
    import torch.distributed as dist
    from detectron2.utils import comm

    dist.all_reduce(torch.zeros(1))
    comm.all_gather(1)
    assert any("gloo" in name for name in names())

launch(train)
print([name for name in names() if "gloo" in name])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are read from /proc")
def test_no_thread_of_gloo_outlives_a_run(root: Path) -> None:
    """One that still lives when the interpreter ends may abort the process."""
    usual = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    usual["MASTER_PORT"] = str(distributed.find_free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", THREADS],
            env={**usual, "RANK": rank, "LOCAL_RANK": rank},
            cwd=root,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    assert [process.communicate(timeout=100)[0] for process in processes] == ["[]\n", "[]\n"]
    assert [process.returncode for process in processes] == [0, 0]


@pytest.fixture
def leaving(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """How this process leaves a group of its own, as if it was NCCL's, whose abort hangs."""
    import torch.distributed as dist

    calls: list[str] = []
    hang = threading.Event()
    destroy = dist.destroy_process_group

    def abort() -> None:
        calls.append("abort")
        hang.wait(60)

    monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("destroy"))
    monkeypatch.setattr(dist.distributed_c10d, "_abort_process_group", abort)
    monkeypatch.setattr(distributed, "LEAVE_SECONDS", 1)
    yield calls
    hang.set()
    destroy()


@pytest.mark.parametrize(
    ("error", "expected"),
    [(None, ["destroy"]), (Preempted("saved"), ["destroy"]), (KeyError("ours"), ["abort"]), (SystemExit(3), ["abort"])],
)
def test_a_group_is_destroyed_after_a_clean_end_only(
    leaving: list[str], error: BaseException | None, expected: list[str]
) -> None:
    def main() -> None:
        if error is not None:
            raise error

    group = DistributedEnvironment(0, 1, 0, 1, f"tcp://127.0.0.1:{distributed.find_free_port()}")
    with contextlib.ExitStack() as stack:
        if error is not None:
            stack.enter_context(pytest.raises(type(error)))
        distributed._run_in_group(group, main, ())
    assert (signal.alarm(0) > 0) == ("abort" in expected), "what cannot exit is ended"
    assert leaving == expected


def test_the_free_port_is_free() -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", distributed.find_free_port()))


FORGOTTEN = """
import multiprocessing, signal, sys, time
from ssl_transfer.training.distributed import ignore_stop_signals, launch

def loader(ready):
    ignore_stop_signals(0)
    ready.set()
    time.sleep(600)

def train():
    ready = multiprocessing.Event()
    multiprocessing.get_context("fork").Process(target=loader, args=(ready,), daemon=True).start()
    assert ready.wait(60)
    if len(sys.argv) > 1:
        raise KeyError("broken")

launch(train, ())
"""


@pytest.mark.parametrize(("words", "code"), [([], 0), (["broken"], 1)])
def test_a_loader_process_that_is_left_does_not_delay_the_end(root: Path, words: list[str], code: int) -> None:
    """It ignores Python's SIGTERM at exit, and Python would wait for it indefinitely."""
    done = subprocess.run([sys.executable, "-c", FORGOTTEN, *words], cwd=root, capture_output=True, timeout=100)
    assert done.returncode == code and (b"KeyError" in done.stderr) == bool(words)


class _Frozen(torch.utils.data.Dataset[int]):
    """The number of objects that a loader process's garbage collector ignores."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, _index: int) -> int:
        return gc.get_freeze_count()


def test_loader_processes_do_not_collect_inherited_objects() -> None:
    loader = torch.utils.data.DataLoader(_Frozen(), batch_size=None, num_workers=2)
    assert all(count > 1000 for count in distributed.start_workers(loader))
    assert gc.get_freeze_count() == 0
    assert list(distributed.start_workers([1, 2])) == [1, 2]
