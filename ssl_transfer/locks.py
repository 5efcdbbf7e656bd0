"""File locks that end with the processes that hold them, and processes known by number and start time.

Together they tell a running job from one that was killed with -9.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import signal
import socket
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Any

from ssl_transfer.errors import UserError, storage_error
from ssl_transfer.files import JSON_LIMIT, read_input
from ssl_transfer.formats.job import ProcessId

SUBMIT_LOCK = "submit.lock"

BEAT_SECONDS, SILENT_SECONDS = 15.0, 120.0
"""A holder renews its note every BEAT_SECONDS; one of another machine that has not for SILENT_SECONDS is dead."""
NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
"""What flock raises on a file system without it: Lustre mounted without `-o flock`, NFS without lockd."""


class FileLock:
    """An exclusive lock: `flock` on a file that stays behind, and a note in it that names its holder.

    The kernel releases it when the last process that inherited the descriptor has ended, in whatever way. Pass
    `fileno()` to a child (`pass_fds`) and `add` it, and the lock is held as long as the child lives.

    Where the file system has no `flock`, the lock is a second file, `NAME.owner`, with the note: it is created
    exclusively, and free once the processes in it have ended (on this machine) or it has not been renewed for
    SILENT_SECONDS. A machine with `flock` and one without it respect each other's locks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None
        self._note_handle = -1
        self._note: dict[str, Any] = {}
        self._released = threading.Event()

    @property
    def files(self) -> set[Path]:
        """The files that exist only for this lock."""
        return {self.path, _owner_file(self.path)}

    def acquire(self, timeout: float = 0.5) -> bool:
        """Take the lock; False if another process holds it.

        Args:
            timeout: seconds to try; covers the instant in which another process tests whether it is held.

        Raises:
            UserError: the file cannot be written.
        """
        deadline = time.monotonic() + timeout
        try:
            while not self._try():
                if time.monotonic() >= deadline:
                    return False
                time.sleep(0.02)
        except OSError as error:
            line = f"cannot write {self.path}: {error.strerror}; choose another run_dir"
            raise storage_error(error, self.path) or UserError(line) from error
        self._released = threading.Event()
        threading.Thread(target=self._keep_beating, args=(self._released, self._note_handle), daemon=True).start()
        return True

    def _try(self) -> bool:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        locked = False
        try:
            has_flock = _flock(handle, fcntl.LOCK_EX)
            locked = has_flock is not False and self._announce(handle, has_flock is None)
        finally:
            if not locked:
                os.close(handle)
        self._handle = handle if locked else None
        return locked

    def _announce(self, handle: int, by_owner_file: bool) -> bool:
        """Write the note, then see whether a holder of the other kind has one: of two at once none misses the other."""
        me, owner = process_id(), _owner_file(self.path)
        self._note = {**me.as_dict(), "machine": _machine(), "token": secrets.token_hex(8), "processes": []}
        if by_owner_file:
            created = _create_owner_file(owner)
            if created is None:
                return False
            self._note_handle = created
        elif _is_same_file(handle, self.path):
            self._note_handle = os.dup(handle)
        else:
            return False  # its former holder removed the file
        self.add(me)
        if not _is_alive(self.path if by_owner_file else owner):
            return True
        self._remove_note(by_owner_file)
        return False

    def fileno(self) -> int:
        assert self._handle is not None, "the lock is not held"
        return self._handle

    def add(self, process: ProcessId) -> None:
        """Record that the lock is held as long as this process lives, too."""
        self._note["processes"].append([process.pid, process.started])
        text = json.dumps(self._note).encode()
        os.pwrite(self._note_handle, text, 0)
        os.ftruncate(self._note_handle, len(text))

    def _keep_beating(self, released: threading.Event, handle: int) -> None:
        signal.pthread_sigmask(
            signal.SIG_BLOCK, signal.valid_signals()
        )  # they are for the main thread, or blocked there
        while not released.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # released at this instant, or a server that does not answer
                os.utime(handle)

    def _remove_note(self, by_owner_file: bool) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(self._note_handle, 0)
            if by_owner_file:
                _owner_file(self.path).unlink()
        os.close(self._note_handle)

    def release(self) -> None:
        """Release the lock; a child that inherited it keeps it."""
        if self._handle is not None:
            self._released.set()
            owner = _owner_file(self.path)
            self._remove_note(owner.exists() and os.path.samestat(os.fstat(self._note_handle), owner.stat()))
            os.close(self._handle)
            self._handle = None

    @property
    def is_acquired(self) -> bool:
        return self._handle is not None

    def forget(self) -> None:
        """In a forked child that does not keep the lock: close what it inherited; the lock stays the parent's."""
        if self._handle is not None:
            os.close(self._handle)
            os.close(self._note_handle)
            self._handle = None

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.release()


def is_held(path: Path) -> bool:
    try:
        handle = _open(path)
    except FileNotFoundError:
        return False
    try:
        has_flock = _flock(handle, fcntl.LOCK_SH)  # shared, and only for an instant
    finally:
        os.close(handle)
    return has_flock is False or _is_alive(_owner_file(path)) or (has_flock is None and _is_alive(path))


def read_holder(path: Path) -> ProcessId | None:
    """The process that holds the lock; None if it is free, or its note cannot be read."""
    for file in (path, _owner_file(path)) if is_held(path) else ():
        with contextlib.suppress(UserError):
            if _is_alive(file):
                return ProcessId.read(file)
    return None


def why_no_flock(path: Path) -> str | None:
    """Why a file cannot be locked by `flock`, in the system's words; None if it can (or does not exist)."""
    try:
        handle = _open(path)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.strerror if error.errno in NO_FLOCK else None
    finally:
        os.close(handle)
    return None


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # never waits for a named pipe's writer


def _flock(handle: int, kind: int) -> bool | None:
    """Try to lock the file; None where the file system has no flock."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_FLOCK:
            return None
        raise


def _owner_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.owner")


def _create_owner_file(owner: Path) -> int | None:
    """Create the file, or take over that of a dead holder; its descriptor, or None if a holder lives."""
    with contextlib.suppress(FileExistsError):
        return os.open(owner, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    if _is_alive(owner):
        return None
    try:
        handle = os.open(owner, os.O_RDWR)
    except FileNotFoundError:
        return None
    # A claim names the dead holder and is made once: only one process takes its file over.
    claim = owner.with_name(f"{owner.name}.{_read_note(owner).get('token', 'empty')}")
    try:
        if claim.exists() and _age(claim) > SILENT_SECONDS:  # whoever made it was killed at this very point
            claim.unlink()
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
    except OSError as error:
        os.close(handle)
        if isinstance(error, (FileExistsError, FileNotFoundError)):
            return None
        raise
    is_mine = not _is_alive(owner) and _is_same_file(handle, owner)  # not taken over before the claim was made
    if is_mine:
        os.utime(handle)
        os.ftruncate(handle, 0)
    else:
        os.close(handle)
    claim.unlink(missing_ok=True)
    return handle if is_mine else None


def _is_alive(file: Path) -> bool:
    """Whether the holder that the note names lives: by its processes on this machine, else by the note's age."""
    note = _read_note(file)
    if note and note.get("machine") == _machine():
        return any(_is_running(pid, started) for pid, started in note["processes"])
    is_owner = file.suffix == ".owner"  # it holds no note yet at the instant of its creation
    return file.exists() and bool(note or is_owner) and _age(file) < SILENT_SECONDS


def _read_note(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_input(file, JSON_LIMIT))
    except (FileNotFoundError, ValueError, UserError):
        return {}
    return found if isinstance(found, dict) else {}


def _age(file: Path) -> float:
    """Seconds since a file was written, by the clock of its file system where that can be read."""
    try:
        with tempfile.TemporaryFile(dir=file.parent) as probe:
            probe.write(b"now")
            probe.flush()
            now = os.fstat(probe.fileno()).st_mtime
    except OSError:
        now = time.time()
    try:
        return now - file.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _machine() -> str:
    """Identifies the processes among which a number means one process: host names repeat, and so do containers' ids."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


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


def _is_running(pid: int, started: int | None) -> bool:
    """Whether a process of this machine lives; its start tells it from a later one with the same number."""
    stat = _read_stat(pid)
    return (stat[0] != "Z" and started in (None, stat[2])) if stat else started is None


def send_signal(process: ProcessId, number: int) -> bool:
    """Send a signal; False if the process has ended, runs elsewhere, or its number belongs to a later process."""
    if not is_local(process) or not _is_running(process.pid, process.started):
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
