"""The edge between a command line and its user: exit codes, one-line errors, progress."""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn, TextIO

from common.errors import (
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_REQUEUE,
    EXIT_USAGE,
    Preempted,
    UserError,
)


class Parser(argparse.ArgumentParser):
    """An argument parser whose help keeps the line breaks of its examples and whose errors are one line."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Say in one line what is wrong and how to learn more; exit 2."""
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def run(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command line's `main` and exit with its code; a UserError becomes one line and exit 2."""
    sys.exit(call(main, argv))


def call(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """`run` without the exit, for tests: returns the exit code."""
    try:
        code = main(argv)
        sys.stdout.flush()  # here, not at exit, so that a reader who is gone is noticed below
        return code
    except UserError as error:
        return say_error(error)
    except Preempted as stop:
        print(f"stopped: {stop}; the same command continues it", file=sys.stderr)
        return EXIT_REQUEUE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) is gone: nothing is wrong, but the interpreter must not flush into it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except SystemExit as leave:
        if leave.code is None or isinstance(leave.code, int):
            return leave.code or EXIT_OK
        print(leave.code, file=sys.stderr)
        return EXIT_FAILURE


def ignore_torchs_announcements() -> None:
    """Silence, here and in spawned processes, what torch announces of itself when Detectron2 is imported or runs.

    It is nothing that a user here can act on.
    """
    warnings.filterwarnings("ignore", message=r".*torch\.jit\.script.*|.*torch\.meshgrid.*")
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning:torch.jit._script")


def say_error(error: UserError) -> int:
    """Print a user's error as one line on stderr; the exit code for wrong use."""
    line = " ".join(str(error).split())
    print(f"error: {line}", file=sys.stderr)
    return EXIT_USAGE


class Progress:
    """Progress of long work: one line that renews itself on a terminal, a plain line every few seconds elsewhere.

    Args:
        total: how many steps there are.
        label: what is being done.
        stream: where to write; stderr unless told.
        every: seconds between plain lines.
    """

    def __init__(self, total: int, label: str, stream: TextIO | None = None, every: float = 10.0) -> None:
        self.total, self.label = total, label
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.every = 0.2 if self.live else every
        self.start = self.last = time.monotonic()
        self.done = 0

    def step(self, count: int = 1, note: str = "") -> None:
        """Count `count` more steps as done and say so when it is time to."""
        self.done += count
        now = time.monotonic()
        if now - self.last >= self.every or self.done >= self.total:
            self.last = now
            self._write(now, note)

    def _write(self, now: float, note: str) -> None:
        spent = max(now - self.start, 1e-9)
        rate = self.done / spent
        eta = (self.total - self.done) / rate if rate else 0.0
        line = f"{self.label}: {self.done}/{self.total} · {rate:.1f}/s · ETA {clock(eta)}"
        line += f" · {note}" if note else ""
        end = "\n" if not self.live or self.done >= self.total else ""
        self.stream.write(f"\r\033[K{line}{end}" if self.live else line + "\n")
        self.stream.flush()


def megabytes(label: str) -> Callable[[int, int | None], None]:
    """Progress of a download in megabytes, over however many connections it takes.

    Returns:
        A function of bytes done and bytes in all (None where nobody knows).
    """
    shown: list[Progress] = []

    def report(done: int, total: int | None) -> None:
        if not shown:
            shown.append(Progress((total or done) // 1_000_000, f"{label}, MB"))
        shown[0].step(done // 1_000_000 - shown[0].done)

    return report


def clock(seconds: float) -> str:
    """`seconds` as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
