"""File locks that die with their holders: what tells a living job from one that was killed with -9."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

from common.errors import UserError


class FileLock:
    """An exclusive `flock` on a file that stays behind, empty or with a note about its holder.

    The kernel frees it when the last process that inherited the descriptor is gone, however it went. Hand `fileno()` to
    a child (`pass_fds`) and the lock lives as long as the child does.

    Args:
        path: the lock's file; made when it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def acquire(self, patience: float = 0.5) -> bool:
        """Take the lock; False when another process holds it.

        Args:
            patience: seconds to try for; covers the instant in which somebody only asked whether it is held.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}; choose another run_dir") from error
        if not _flock(handle, fcntl.LOCK_EX, patience):
            os.close(handle)
            return False
        self._handle = handle
        return True

    def fileno(self) -> int:
        """The descriptor to hand to a child."""
        assert self._handle is not None, "the lock is not held"
        return self._handle

    def note(self, text: str) -> None:
        """Leave a note for whoever finds the lock taken."""
        os.ftruncate(self.fileno(), 0)
        os.pwrite(self.fileno(), text.encode(), 0)

    def release(self) -> None:
        """Give it back (a child that inherited it keeps it)."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.release()


def is_held(path: Path) -> bool:
    """Whether some process holds the lock; takes nothing that could keep another from it for more than an instant."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _flock(handle, fcntl.LOCK_SH, 0.0)
    finally:
        os.close(handle)


def _flock(handle: int, kind: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
