"""Work in processes of its own: what a device does to one of them (a crash, a hang) reaches nobody else."""

from __future__ import annotations

import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from transfer.doctor.software import in_a_line


@dataclass(frozen=True)
class Answer:
    """What came of a process.

    Attributes:
        value: what its function returned.
        error: in one line, why it returned nothing; empty where it did.
    """

    value: Any = None
    error: str = ""


def in_processes(
    target: Callable[..., Any], calls: Sequence[tuple[Any, ...]], seconds: float, env: Sequence[dict[str, str]] = ()
) -> list[Answer]:
    """`target(*call)` for each of the calls at once, each in a process; those that take longer are killed.

    Args:
        target: importable (module level); it and what it is given and returns can be pickled.
        calls: the arguments of each.
        seconds: how long all of them may take, the start of a Python that imports torch included.
        env: environment variables of each.
    """
    context = multiprocessing.get_context("spawn")
    end, started = time.monotonic() + seconds, []
    try:
        for number, call in enumerate(calls):
            here, there = context.Pipe(duplex=False)
            words = (there, target, call, env[number] if env else {})
            process = context.Process(target=_child, args=words)
            process.start()
            there.close()  # so that `here` sees the end when the process is gone
            started.append((process, here))
        return [_answer(process, here, end, seconds) for process, here in started]
    finally:
        for process, here in started:
            if process.is_alive():
                process.join(5)  # it has answered, or is to be killed
            if process.is_alive():
                process.kill()
            process.join()
            here.close()


def _answer(process: Any, here: Connection, end: float, seconds: float) -> Answer:
    if not here.poll(max(0.0, end - time.monotonic())):
        process.kill()
        return Answer(error=f"no answer within {seconds:.0f} s")
    try:
        answer: Answer = here.recv()
        return answer
    except EOFError:
        process.join()
        code = process.exitcode
        return Answer(error=f"the process died of signal {-code}" if code < 0 else f"the process left with code {code}")


def _child(there: Connection, target: Callable[..., Any], call: tuple[Any, ...], env: dict[str, str]) -> None:
    os.environ.update(env)
    warnings.simplefilter("ignore")  # torch's own
    try:
        answer = Answer(target(*call))
    except Exception as error:
        answer = Answer(error=in_a_line(error))
    there.send(answer)
    there.close()
