"""Locks on file systems with flock, without it, and between machines of which one has it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ssl_transfer import locks
from ssl_transfer.errors import UserError
from ssl_transfer.locks import FileLock, is_held, process_id, read_holder, why_no_flock
from tests.transfer.experiment.small_world import ROOT, World, build_no_flock
from transfer.experiment.executors import open_log
from transfer.tasks import fetch
from transfer.weights import download

flock = fcntl.flock


@pytest.fixture
def switch(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets what flock raises from now on; 0: it works."""
    raised = [0]

    def call(handle: int, kind: int) -> None:
        if raised[0]:
            raise OSError(raised[0], os.strerror(raised[0]))
        flock(handle, kind)

    monkeypatch.setattr(fcntl, "flock", call)
    return lambda number: raised.__setitem__(0, number)


@pytest.mark.parametrize("number", [0, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_one_holder_with_and_without_flock(tmp_path: Path, switch: Callable[[int], None], number: int) -> None:
    switch(number)
    path = tmp_path / "lock"
    first, second = FileLock(path), FileLock(path)
    assert not is_held(path) and read_holder(path) is None
    assert first.acquire(0) and not second.acquire(0.05)
    holder = read_holder(path)
    assert is_held(path) and holder is not None and holder.pid == os.getpid()
    assert why_no_flock(path) == (os.strerror(number) if number else None)
    first.release()
    assert not is_held(path) and second.acquire(0)
    second.release()
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("holder", "other"), [(0, errno.ENOSYS), (errno.ENOSYS, 0)])
def test_machines_with_and_without_flock_respect_each_other(
    tmp_path: Path, switch: Callable[[int], None], holder: int, other: int
) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    switch(holder)
    assert first.acquire(0)
    switch(other)
    assert is_held(tmp_path / "lock") and not second.acquire(0.05)
    switch(holder)
    first.release()
    switch(other)
    assert not is_held(tmp_path / "lock") and second.acquire(0)
    second.release()


def test_any_other_error_is_one_line(tmp_path: Path, switch: Callable[[int], None]) -> None:
    switch(errno.EIO)
    with pytest.raises(locks.UserError, match=rf"{tmp_path}/lock: Input/output error; "):
        FileLock(tmp_path / "lock").acquire()


HOLD = """
import fcntl, subprocess, sys
from pathlib import Path
from ssl_transfer.locks import FileLock, process_id

def call(*_):
    raise OSError(38, "Function not implemented")

fcntl.flock = call
lock = FileLock(Path(sys.argv[1]))
assert lock.acquire()
child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
lock.add(process_id(child.pid))
print(child.pid, flush=True)
child.wait()
"""


def test_it_is_held_until_the_last_process_of_a_killed_holder_has_ended(
    tmp_path: Path, switch: Callable[[int], None]
) -> None:
    switch(errno.ENOSYS)
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    holder.kill()
    holder.wait()
    assert is_held(path) and not FileLock(path).acquire(0)
    os.kill(child, 9)
    lock = FileLock(path)
    assert lock.acquire(5.0)
    lock.release()


def test_a_holder_of_another_machine_lives_while_it_renews_its_note(
    tmp_path: Path, switch: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    switch(errno.ENOSYS)
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.05)
    path, owner = tmp_path / "lock", tmp_path / "lock.owner"
    lock = FileLock(path)
    assert lock.acquire(0)
    monkeypatch.setattr(locks, "_machine", lambda: "another")
    os.utime(owner, (1, 1))
    deadline = time.monotonic() + 10
    while not is_held(path):
        assert time.monotonic() < deadline, "the note is not renewed"
    lock._released.set()
    time.sleep(0.2)
    old = time.time() - locks.SILENT_SECONDS - 5
    os.utime(owner, (old, old))
    assert not is_held(path)
    second = FileLock(path)
    assert second.acquire(0) and json.loads(owner.read_text())["machine"] == "another"
    second.release()


def test_of_many_that_take_over_from_a_dead_holder_one_succeeds(tmp_path: Path, switch: Callable[[int], None]) -> None:
    switch(errno.ENOSYS)
    dead = subprocess.Popen(["true"])
    gone = process_id(dead.pid)
    dead.wait()
    for number in range(20):
        path = tmp_path / f"lock{number}"
        path.touch()
        note = {**gone.as_dict(), "machine": locks._machine(), "token": "x", "processes": [[gone.pid, gone.started]]}
        (tmp_path / f"{path.name}.owner").write_text(json.dumps(note))
        found = [FileLock(path) for _ in range(6)]
        gate, taken = threading.Barrier(len(found)), []

        def take(lock: FileLock) -> None:
            gate.wait()  # noqa: B023
            if lock.acquire(0.1):
                taken.append(lock)  # noqa: B023

        threads = [threading.Thread(target=take, args=(lock,)) for lock in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == 1
        taken[0].release()
        assert not list(tmp_path.glob("*.owner*"))


def test_a_named_pipe_in_place_of_a_lock_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    assert not is_held(tmp_path / "lock") and read_holder(tmp_path / "lock") is None
    with pytest.raises(UserError, match="cannot write"):
        FileLock(tmp_path / "lock").acquire()
    os.mkfifo(tmp_path / "stdout.log")
    with pytest.raises(OSError):
        open_log(tmp_path / "stdout.log")


def test_downloads_and_fetches_go_on_without_locks(tmp_path: Path, switch: Callable[[int], None]) -> None:
    switch(errno.ENOLCK)
    with download._locked(tmp_path / "lock"), fetch._locked(tmp_path):
        pass


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
def test_an_experiment_on_a_file_system_without_flock(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The submit has no flock, as on a login node that mounts Lustre without `-o flock`; this process has it."""
    library = build_no_flock(world.base)
    world.order(pretrain={"hang": True})
    monkeypatch.setenv("LD_PRELOAD", str(library))
    shells = [world.spawn("submit")]
    monkeypatch.delenv("LD_PRELOAD")
    world.wait_for("hang")
    assert world.statuses()["pretrain.simsiam"] == "running"
    assert world.launch("submit") == 2
    assert f"another submit (process {shells[0].pid} on " in capsys.readouterr().err
    monkeypatch.setenv("LD_PRELOAD", str(library))
    shells.append(world.spawn("cancel"))
    outputs = [shell.communicate(timeout=60)[1] for shell in reversed(shells)]
    assert [shell.returncode for shell in shells] == [128 + 15, 0]
    world.order()
    shells.append(world.spawn("submit"))
    outputs.append(shells[-1].communicate(timeout=60)[1])
    assert shells[-1].returncode == 0
    assert "Traceback" not in "".join(outputs)
    assert "without flock (Function not implemented)" in outputs[1] and "without flock" in outputs[2]
    assert set(world.statuses().values()) == {"done"}
    assert not list(world.run_dir.rglob("*.owner*"))
