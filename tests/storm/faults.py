"""Faults in a forked child: it is killed, or the system fails, before the n-th event that changes a file of its world.

An event is an open for writing, a write, an fsync, a rename, a removal, a new folder. The parent has imported the tool
and never trained, so a child costs no start.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_transfer import files
from ssl_transfer.console import call_main

KILL = 0
ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
AUDITED = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link")
Main = Callable[[Sequence[str] | None], int]


@dataclass(frozen=True)
class Outcome:
    """How a child ended: exit code (negative: signal; None: it hung), stderr, and the events it counted."""

    code: int | None
    err: str
    events: list[str]

    def is_one_line(self) -> bool:
        """Whether it ended as a tool should when the disk fails."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return self.code == 1 and len(lines) == 1 and "Traceback" not in self.err


class Events:
    """Counts the events below `root` and strikes at the event with number `at`, and at all after it that are as it."""

    def __init__(self, root: Path, at: int | None, kind: int, log: int) -> None:
        self.root, self.at, self.kind, self.log = str(root.resolve()), at, kind, log
        self.count, self.busy, self.struck = 0, False, False

    def meet(self, what: str, path: Any) -> None:
        if self.busy or not self._is_below(path):
            return
        self.busy = True
        try:
            number, self.count = self.count, self.count + 1
            real_write(self.log, f"{what} {Path(self._name(path)).name}\n".encode())
            if self.at is None or number < self.at:
                return
            if self.kind == KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            if what not in ("os.remove", "os.rmdir"):  # a full disk lets remove
                self.struck = True
                raise OSError(self.kind, os.strerror(self.kind), self._name(path))
        finally:
            self.busy = False

    def _name(self, path: Any) -> str:
        if isinstance(path, int):
            try:
                return str(Path(f"/proc/self/fd/{path}").readlink())
            except OSError:
                return ""
        return os.path.realpath(os.fsdecode(path)) if isinstance(path, (str, bytes, os.PathLike)) else ""

    def _is_below(self, path: Any) -> bool:
        return self._name(path).startswith(self.root)


real_write, real_open = os.write, io.open


def install(events: Events) -> None:
    """Let every event of this process pass `events`; cannot be undone, so only in a child."""

    def audit(name: str, args: tuple[Any, ...]) -> None:
        if name == "open" and isinstance(args[2], int) and args[2] & WRITING:
            events.meet("open", args[0])
        elif name in AUDITED:
            events.meet(name, args[0])

    def counted(name: str) -> None:
        real = getattr(os, name)

        def call(handle: int, *args: Any) -> Any:
            events.meet(name, handle)
            return real(handle, *args)

        setattr(os, name, call)

    class CountedFile(io.FileIO):
        def write(self, data: Any) -> int:
            events.meet("write", self.fileno())
            return super().write(data)

    def opened(file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
               newline: Any = None, closefd: bool = True, opener: Any = None) -> Any:  # fmt: skip
        if not set(mode) & set("wax+") or buffering == 0:
            return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = CountedFile(file, mode.replace("t", ""), closefd, opener)
        stream = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return stream if "b" in mode else io.TextIOWrapper(stream, encoding, errors, newline, buffering == 1)

    record = files._RecordingFile.write

    def recorded(self: Any, data: Any) -> int:
        try:
            events.meet("write", self.fileno())
        except OSError as error:
            self.failure = error
            raise
        return record(self, data)

    files._RecordingFile.write = recorded  # type: ignore[method-assign]
    for name in ("write", "pwrite", "fsync", "ftruncate", "posix_fallocate"):
        counted(name)
    builtins.open = io.open = opened  # type: ignore[assignment]
    sys.addaudithook(audit)


def run_child(main: Main, argv: Sequence[str], root: Path, at: int | None = None, kind: int = KILL) -> Outcome:
    """Run a command line in a forked child; it strikes at event `at` below `root` (None: never)."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        child = os.fork()
        if child == 0:
            _be_child(main, argv, Events(root, at, kind, _create(place / "events")), place)
        code = _wait(child)
        err = (place / "err").read_text(errors="replace") if (place / "err").exists() else ""
        return Outcome(code, err, (place / "events").read_text().splitlines())


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def _be_child(main: Main, argv: Sequence[str], events: Events, place: Path) -> None:
    code = 1
    try:
        os.setsid()
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(_create(place / name), number)
        sys.stdout, sys.stderr = real_open(1, "w", closefd=False), real_open(2, "w", buffering=1, closefd=False)
        install(events)
        code = call_main(main, argv)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _wait(child: int, seconds: float = 120.0) -> int | None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # what it started
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def points(events: Sequence[str], count: int, choose: Callable[[Sequence[int], int], list[int]]) -> list[int]:
    """Numbers of events: the first of every kind and file, then random others up to `count`."""
    first: dict[str, int] = {}
    for number, event in enumerate(events):
        first.setdefault("".join(letter for letter in event if not letter.isdigit()), number)
    kinds = sorted(first.values())
    if len(kinds) >= count:
        return sorted(choose(kinds, count))
    others = [number for number in range(len(events)) if number not in kinds]
    return sorted(kinds + choose(others, min(len(others), count - len(kinds))))


def flips(content: bytes, count: int, randrange: Callable[[int], int], tail: int = 0) -> Iterator[bytes]:
    """The content with one bit flipped, `count` times, every other time among the last `tail` bytes."""
    for number in range(count):
        changed = bytearray(content)
        changed[-1 - randrange(tail if tail and number % 2 else len(content))] ^= 1 << randrange(8)
        yield bytes(changed)
