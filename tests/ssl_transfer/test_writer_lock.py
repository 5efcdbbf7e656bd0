"""One writer a target: the second is refused by name, a dead owner's lock is taken over, with and without flock."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssl_transfer.errors import StorageError, UserError
from ssl_transfer.writer_lock import LOCK, WriterLock

HOLDER = """
import fcntl, os, sys
sys.path.insert(0, sys.argv[1])
def refuse(*_):
    raise OSError(38, "no locks")
if sys.argv[4] == "without":
    fcntl.flock = refuse
from ssl_transfer.writer_lock import WriterLock
with WriterLock(sys.argv[2], file=sys.argv[3] == "file"):
    worker = os.fork()
    if worker == 0:  # as a loader's worker, which outlives its killed parent for a while
        import time
        time.sleep(60)
    print("held", worker, flush=True)
    sys.stdin.read()
"""


def refuse(*_: object) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@pytest.mark.parametrize("flock", ["with", "without"])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_the_second_writer_is_refused_by_name_and_a_killed_ones_lock_is_taken_over(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, flock: str
) -> None:
    if flock == "without":
        monkeypatch.setattr(fcntl, "flock", refuse)
    target = tmp_path / "runs" / "one"
    command = [sys.executable, "-c", HOLDER, str(root), str(target), kind, flock]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        held, worker = process.stdout.readline().split()
        assert held == b"held"
        with pytest.raises(UserError) as refused:
            WriterLock(target, file=kind == "file").acquire()
        for part in (str(target), str(process.pid), socket.gethostname(), "--output"):
            assert part in str(refused.value)
        process.kill()
        process.wait()
        with WriterLock(target, file=kind == "file"):
            pass
        os.kill(int(worker), signal.SIGKILL)
    assert not list(tmp_path.rglob("*.lock*"))


def test_a_lock_that_wrote_nothing_leaves_no_folder(tmp_path: Path) -> None:
    with WriterLock(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK).is_file()
    assert not (tmp_path / "a").exists()
    with WriterLock(tmp_path / "c"):
        (tmp_path / "c" / "result.json").touch()
    assert [file.name for file in (tmp_path / "c").iterdir()] == ["result.json"]


def test_a_requeued_job_waits_for_its_former_self(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("ssl_transfer.locks.FileLock.acquire", lambda _, timeout: waited.append(timeout) or True)
    for restarts in ("0", "1"):
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
        WriterLock(tmp_path).acquire()
    assert waited[0] < 1 < 120 < waited[1]


@pytest.mark.parametrize(("number", "kind"), [(errno.EROFS, StorageError), (errno.EACCES, UserError)])
def test_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[UserError]
) -> None:
    def refuse_open(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    begun = time.monotonic()
    monkeypatch.setattr(os, "open", refuse_open)
    with pytest.raises(UserError) as refused:
        WriterLock(tmp_path / "new").acquire()
    assert type(refused.value) is kind and str(tmp_path / "new") in str(refused.value)
    assert not (tmp_path / "new").exists() and time.monotonic() - begun < 5
