"""Wall-clock seconds and peak memory of a command or a function in a process of its own."""

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

from ssl_transfer.environment import ROOT, version_of

MIB = 2**20
Work = Callable[[], str]


@dataclass(frozen=True)
class Benchmark:
    """A command or a function whose time and memory are measured.

    Attributes:
        name: what is measured.
        words: a command line, measured from the start of its process; or, after `CALL`, the name of a function
            (`module:function`) and its arguments: the function prepares and returns the work that is measured.
        size: number of units it processes; 0 where it has none.
        unit: name of a unit.
        expected: text that must be in the command's output or in what the work returns.
        prepare: creates the inputs in the scratch folder; not measured.
    """

    name: str
    words: tuple[str, ...]
    size: int = 0
    unit: str = ""
    expected: str = ""
    prepare: Callable[[Path], None] | None = None


@dataclass(frozen=True)
class Measurement:
    """The result of a `Benchmark`.

    Attributes:
        name, size, unit: as in `Benchmark`.
        seconds: wall clock.
        peak_mib: peak resident memory of the process, in MiB.
        added_mib: the peak less what the process held before the work; for a command line equal to the peak.
        output: what the work returned, or the first line that the command printed.
    """

    name: str
    size: int
    unit: str
    seconds: float
    peak_mib: float
    added_mib: float
    output: str


CALL = "call"
STARTER = """
import json, os, sys, time
start = time.perf_counter()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
_, status, usage = os.wait4(pid, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), time.perf_counter() - start, usage.ru_maxrss]))
"""
"""Starts a command and waits for it. It is small because a process's peak starts at its parent's memory."""


def measure_benchmark(benchmark: Benchmark, folder: Path) -> Measurement:
    """Run a benchmark in a fresh process.

    Args:
        benchmark: what to measure; `{folder}` in its words is replaced by `folder`.
        folder: a scratch folder.

    Raises:
        AssertionError: it failed, or its output lacks the expected text.
    """
    if benchmark.prepare is not None:
        benchmark.prepare(folder)
    words = [word.format(folder=folder) for word in benchmark.words]
    calls = words[0] == CALL
    command = [sys.executable, "-m", "benchmarks.isolated", *words[1:]] if calls else [sys.executable, *words]
    log = folder / "output.txt"
    with open(log, "w") as stream:
        starter = [sys.executable, "-I", "-S", "-c", STARTER, *command]
        done = subprocess.run(starter, cwd=ROOT, stdout=subprocess.PIPE, stderr=stream, env=_environment(), check=True)
    code, seconds, kilobytes = json.loads(done.stdout)
    printed = log.read_text(errors="replace").strip()
    assert code == 0, f"exit code {code}: {printed[-500:]}"
    assert benchmark.expected in printed, f"{benchmark.expected!r} is not in its output: {printed[-500:]}"
    if calls:
        found = json.loads(printed.splitlines()[-1])
        return Measurement(benchmark.name, benchmark.size, benchmark.unit, **found)
    peak = kilobytes * 1024 / MIB
    return Measurement(
        benchmark.name, benchmark.size, benchmark.unit, seconds, peak, peak, printed.splitlines()[0] if printed else ""
    )


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONWARNINGS": "ignore"}


def machine() -> dict[str, object]:
    """Describe the machine: processor, cores, versions, load average."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return {
        "processor": model.group(1) if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": version_of("torch"),
        "load": round(os.getloadavg()[0], 2),
    }


def call(name: str, arguments: Sequence[str]) -> dict[str, object]:
    """Prepare a function's work, run it and return what it took; for a process of its own.

    Args:
        name: `module:function`.
        arguments: the function's arguments, as text.
    """
    module, _, function = name.partition(":")
    work: Work = getattr(importlib.import_module(module), function)(*arguments)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    start = time.perf_counter()
    output = work()
    seconds = time.perf_counter() - start
    peak = _resident("VmHWM")
    return {"seconds": seconds, "peak_mib": peak, "added_mib": peak - before, "output": output}


def _resident(name: str) -> float:
    """This process's resident memory in MiB: `VmRSS` now, `VmHWM` at the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024 / MIB
    raise RuntimeError(f"/proc/self/status has no {name}")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(call(sys.argv[1], sys.argv[2:]), ensure_ascii=False) + "\n")
