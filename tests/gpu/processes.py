"""Run functions in processes of their own: a crash or a hang of a device affects that process alone."""

from __future__ import annotations

import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from transfer.doctor.software import one_line


@dataclass(frozen=True)
class ProcessResult:
    """The result of a process.

    Attributes:
        value: what the function returned.
        error: one line that says why it returned nothing; empty where it did.
    """

    value: Any = None
    error: str = ""


def run_in_processes(
    target: Callable[..., Any], calls: Sequence[tuple[Any, ...]], seconds: float, env: Sequence[dict[str, str]] = ()
) -> list[ProcessResult]:
    """Run `target(*call)` for every call in parallel, each in a process; kill those that take too long.

    Args:
        target: a module-level function; its arguments and result must be picklable.
        calls: the arguments of each process.
        seconds: time limit for all of them, the start of Python and the import of torch included.
        env: environment variables of each process.
    """
    context = multiprocessing.get_context("spawn")
    end, started = time.monotonic() + seconds, []
    try:
        for number, call in enumerate(calls):
            here, there = context.Pipe(duplex=False)
            words = (there, target, call, env[number] if env else {})
            process = context.Process(target=_child, args=words)
            process.start()
            there.close()  # so that `here` gets EOF when the process ends
            started.append((process, here))
        return [_answer(process, here, end, seconds) for process, here in started]
    finally:
        for process, here in started:
            if process.is_alive():
                process.join(5)  # it has answered, or is killed
            if process.is_alive():
                process.kill()
            process.join()
            here.close()


def _answer(process: Any, here: Connection, end: float, seconds: float) -> ProcessResult:
    if not here.poll(max(0.0, end - time.monotonic())):
        process.kill()
        return ProcessResult(error=f"no answer within {seconds:.0f} s")
    try:
        answer: ProcessResult = here.recv()
        return answer
    except EOFError:
        process.join()
        code = process.exitcode
        return ProcessResult(
            error=f"the process was killed by signal {-code}" if code < 0 else f"the process exited with code {code}"
        )


def _child(there: Connection, target: Callable[..., Any], call: tuple[Any, ...], env: dict[str, str]) -> None:
    os.environ.update(env)
    warnings.simplefilter("ignore")
    try:
        answer = ProcessResult(target(*call))
    except Exception as error:
        answer = ProcessResult(error=one_line(error))
    there.send(answer)
    there.close()
