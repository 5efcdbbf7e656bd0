"""Processes on this machine, known by number and start time: a number that is used again is another process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One process for ever.

    Attributes:
        host: the machine it runs on.
        pid: its number.
        started: clock ticks from the machine's start to its own (`/proc/PID/stat`); None where there is no /proc.
    """

    host: str
    pid: int
    started: int | None

    def alive(self) -> bool:
        """Whether it runs, on this machine."""
        if self.host != socket.gethostname():
            return False
        stat = _stat(self.pid)
        if stat is None:
            return self.started is None and _exists(self.pid)
        return stat[0] != "Z" and self.started in (None, stat[2])

    def signal(self, number: int) -> bool:
        """Send it a signal; False when it is not there."""
        if not self.alive():
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
            return True
        return False


def this(pid: int | None = None) -> Process:
    """This process, or a child of it."""
    number = pid or os.getpid()
    stat = _stat(number)
    return Process(socket.gethostname(), number, stat[2] if stat else None)


def kill_tree(pid: int) -> None:
    """Kill a process and all it started, its descendants first found, then each with SIGKILL."""
    for number in [pid, *_descendants(pid)]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(number, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").glob("[0-9]*"):
        stat = _stat(int(entry.name))
        if stat is not None:
            children[stat[1]].append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        queue += (more := children[queue.pop()])
        found += more
    return found


def _stat(pid: int) -> tuple[str, int, int] | None:
    """State letter, parent, start time of a process; None when it (or /proc) is not there."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the command's name may hold blanks and brackets
    return fields[0], int(fields[1]), int(fields[19])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
