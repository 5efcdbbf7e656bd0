"""File locks that end with the processes that hold them, and processes known by number and start time.

Together they tell a running job from one that was killed with -9.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import time
from collections import defaultdict
from pathlib import Path
from types import TracebackType

from common.errors import UserError
from common.formats.job import ProcessId


class FileLock:
    """An exclusive `flock` on a file that stays behind, empty or with a note about its holder.

    The kernel releases it when the last process that inherited the descriptor has ended, in whatever way. Pass
    `fileno()` to a child (`pass_fds`), and the lock is held as long as the child lives.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def acquire(self, timeout: float = 0.5) -> bool:
        """Take the lock; False if another process holds it.

        Args:
            timeout: seconds to try; covers the instant in which another process tests whether it is held.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise UserError(f"cannot write {self.path}: {error.strerror}; choose another run_dir") from error
            if not _flock(handle, fcntl.LOCK_EX, deadline):
                os.close(handle)
                return False
            if _is_same_file(handle, self.path):
                self._handle = handle
                return True
            os.close(handle)  # its former holder removed the file

    def fileno(self) -> int:
        assert self._handle is not None, "the lock is not held"
        return self._handle

    def write_note(self, text: str) -> None:
        """Write text into the file for processes that find the lock held."""
        os.ftruncate(self.fileno(), 0)
        os.pwrite(self.fileno(), text.encode(), 0)

    def release(self) -> None:
        """Release the lock; a child that inherited it keeps it."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.release()


def is_held(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _flock(handle, fcntl.LOCK_SH, 0.0)  # shared, and only for an instant
    finally:
        os.close(handle)


def _flock(handle: int, kind: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)


def _is_same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def process_id(pid: int | None = None) -> ProcessId:
    """The identity of this process, or of a child of it."""
    number = pid or os.getpid()
    stat = _read_stat(number)
    return ProcessId(host=socket.gethostname(), pid=number, started=stat[2] if stat else None)


def is_local(process: ProcessId) -> bool:
    return process.host == socket.gethostname()


def send_signal(process: ProcessId, number: int) -> bool:
    """Send a signal; False if the process has ended, runs elsewhere, or its number belongs to a later process."""
    stat = _read_stat(process.pid)
    is_same = (stat[0] != "Z" and process.started in (None, stat[2])) if stat else process.started is None
    if not is_local(process) or not is_same:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)
        return True
    return False


def kill_tree(pid: int) -> None:
    for number in [pid, *_descendants(pid)]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(number, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").glob("[0-9]*"):
        stat = _read_stat(int(entry.name))
        if stat is not None:
            children[stat[1]].append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        queue += (more := children[queue.pop()])
        found += more
    return found


def _read_stat(pid: int) -> tuple[str, int, int] | None:
    """State letter, parent and start time of a process; None if it (or /proc) does not exist."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the command's name may hold blanks and brackets
    return fields[0], int(fields[1]), int(fields[19])
