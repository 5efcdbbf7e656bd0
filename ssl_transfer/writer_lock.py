"""One writer a target: the lock of a folder or a file that a command writes (`--output`)."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable
from pathlib import Path

from ssl_transfer.errors import UserError, storage_error
from ssl_transfer.files import remove_partial_files, write_text
from ssl_transfer.locks import SILENT_SECONDS, FileLock, is_held, read_holder

LOCK = ".writer.lock"


class WriterLock:
    """The right to write a folder (`.writer.lock` in it) or a file (`.NAME.lock` beside it).

    It ends with its process: loader workers that it forked do not keep it. Its file, and the folders that were made for
    it and hold nothing, are removed at the end.

    Args:
        target: the folder or the file.
        file: the target is a file.
        purpose: the option that the user gave, for the message.
    """

    def __init__(self, target: str | os.PathLike[str], *, file: bool = False, purpose: str = "--output") -> None:
        self.target, self.purpose = Path(target), purpose
        self.path = self.target.with_name(f".{self.target.name}.lock") if file else self.target / LOCK
        self._lock = FileLock(self.path)
        self._made: list[Path] = []

    def acquire(self) -> None:
        """Take the lock; a dead owner's lock is taken over.

        A job that Slurm requeued waits for its former self, which another node may still take for alive.

        Raises:
            UserError: another process is writing the target; names its host and number. Or it cannot be written.
        """
        requeued = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
        try:
            folder = self.path.parent
            self._made = [one for one in (folder, *folder.parents) if not one.exists()]
            taken = self._lock.acquire(1.5 * SILENT_SECONDS if requeued else 0.5)
        except (UserError, OSError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            self._remove_folders()
            why = getattr(cause, "strerror", None) or error
            line = f"cannot write {self.purpose} {self.target}: {why}; choose a folder you may write to"
            raise storage_error(cause, self.target) or UserError(line) from error
        if not taken:
            holder = read_holder(self.path)
            who = f"process {holder.pid} on {holder.host}" if holder else "another process"
            raise UserError(
                f"{self.purpose} {self.target} is being written by {who}; wait until it has ended, or name another"
            )
        _forget_in_forks(weakref.ref(self._lock))

    def release(self) -> None:
        """Give the lock up."""
        if not self._lock.is_acquired:
            return
        with contextlib.suppress(OSError):
            self.path.unlink()
        with contextlib.suppress(OSError):
            self._lock.release()
        self._remove_folders()

    def _remove_folders(self) -> None:
        with contextlib.suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    def __enter__(self) -> WriterLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def remove_dead_lock(folder: Path) -> None:
    """Remove the lock of a process that was killed after it had written its result: nothing will take it over."""
    with contextlib.suppress(OSError):  # a finished folder may be read-only
        if not is_held(folder / LOCK):
            (folder / LOCK).unlink(missing_ok=True)


def _forget_in_forks(lock: weakref.ref[FileLock]) -> None:
    def forget() -> None:
        held = lock()
        if held is not None:
            held.forget()

    os.register_at_fork(after_in_child=forget)


def write_output(target: Path, render: Callable[[], str]) -> None:
    """Write the text file that `--output` names, which no other process writes meanwhile.

    Args:
        target: the file.
        render: makes its content; called under the lock.
    """
    with WriterLock(target, file=True):
        remove_partial_files(target.parent, [target.name])
        write_text(target, render())
