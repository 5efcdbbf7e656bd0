"""What something costs in a process of its own: wall-clock seconds and the memory at its peak."""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.environment import ROOT, version_of

MIB = 2**20
Work = Callable[[], str]


@dataclass(frozen=True)
class Cost:
    """One thing whose cost is measured.

    Attributes:
        what: it.
        words: a command line whose whole run is measured, from the start of its process; or, after `CALL`, the name of
            a function (`module:function`) and its arguments: it gets ready and returns the work that is measured.
        size: how many units it is done to; 0 where it has none.
        unit: what a unit is.
        proves: what must stand in what the command prints or the work returns.
        prepare: makes in the scratch folder what it needs; not measured.
    """

    what: str
    words: tuple[str, ...]
    size: int = 0
    unit: str = ""
    proves: str = ""
    prepare: Callable[[Path], None] | None = None


@dataclass(frozen=True)
class Spent:
    """What a cost was found to be.

    Attributes:
        what, size, unit: as in `Cost`.
        seconds: wall clock.
        peak_mib: the process's resident memory at its peak, in MiB.
        added_mib: by how much the peak is above what it held before the work; for a command line the same as the peak.
        said: what the work returned, or the first line that the command printed.
    """

    what: str
    size: int
    unit: str
    seconds: float
    peak_mib: float
    added_mib: float
    said: str


CALL = "call"
STARTER = """
import json, os, sys, time
start = time.perf_counter()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
_, status, usage = os.wait4(pid, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), time.perf_counter() - start, usage.ru_maxrss]))
"""
"""Starts a command and waits for it. It is small: a process's peak begins with the memory of the one that made it."""


def measure_cost(cost: Cost, folder: Path) -> Spent:
    """Run it in a fresh process.

    Args:
        cost: what to measure; `{folder}` in its words stands for `folder`.
        folder: a scratch folder.

    Raises:
        AssertionError: it failed, or did not print what proves that it did its work.
    """
    if cost.prepare is not None:
        cost.prepare(folder)
    words = [word.format(folder=folder) for word in cost.words]
    calls = words[0] == CALL
    command = [sys.executable, "-m", "common.costs", *words[1:]] if calls else [sys.executable, *words]
    log = folder / "output.txt"
    with open(log, "w") as stream:
        starter = [sys.executable, "-I", "-S", "-c", STARTER, *command]
        done = subprocess.run(starter, cwd=ROOT, stdout=subprocess.PIPE, stderr=stream, env=_environment(), check=True)
    code, seconds, kilobytes = json.loads(done.stdout)
    printed = log.read_text(errors="replace").strip()
    assert code == 0, f"exit code {code}: {printed[-500:]}"
    assert cost.proves in printed, f"{cost.proves!r} is not in what it printed: {printed[-500:]}"
    if calls:
        found = json.loads(printed.splitlines()[-1])
        return Spent(cost.what, cost.size, cost.unit, **found)
    peak = kilobytes * 1024 / MIB
    return Spent(cost.what, cost.size, cost.unit, seconds, peak, peak, printed.splitlines()[0] if printed else "")


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONWARNINGS": "ignore"}


def machine() -> dict[str, object]:
    """Where figures come from: processor, cores, torch, and how busy the machine is with other things."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return {
        "processor": model.group(1) if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": version_of("torch"),
        "load": round(os.getloadavg()[0], 2),
    }


def call(name: str, arguments: Sequence[str]) -> dict[str, object]:
    """Get a function's work ready, do it, and say what it took; to be called in a process of its own.

    Args:
        name: `module:function`.
        arguments: of the function, as text.
    """
    module, _, function = name.partition(":")
    work: Work = getattr(importlib.import_module(module), function)(*arguments)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    start = time.perf_counter()
    said = work()
    seconds = time.perf_counter() - start
    peak = _resident("VmHWM")
    return {"seconds": seconds, "peak_mib": peak, "added_mib": peak - before, "said": said}


def _resident(name: str) -> float:
    """A line of this process's memory in MiB: `VmRSS` now, `VmHWM` at the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024 / MIB
    raise RuntimeError(f"/proc/self/status has no {name}")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(call(sys.argv[1], sys.argv[2:]), ensure_ascii=False) + "\n")
