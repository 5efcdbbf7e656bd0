"""Processes that return, fail, die and hang."""

from __future__ import annotations

import math
import operator
import os
import signal
import time

import pytest

from tests.gpu.processes import ProcessResult, run_in_processes


def test_values_errors_and_environment_come_back_in_order() -> None:
    answers = run_in_processes(math.sqrt, [(9,), (-1,), (4,)], 60)
    assert answers[0] == ProcessResult(3.0) and answers[2] == ProcessResult(2.0)
    assert answers[1].value is None and answers[1].error.startswith("ValueError: ")
    env = [{"DOCTOR_TEST": "first"}, {"DOCTOR_TEST": "second"}]
    assert [answer.value for answer in run_in_processes(os.getenv, [("DOCTOR_TEST",)] * 2, 60, env)] == [
        "first",
        "second",
    ]


@pytest.mark.parametrize(
    ("target", "call", "said"),
    [
        (os._exit, (3,), "the process exited with code 3"),
        (signal.raise_signal, (signal.SIGKILL,), "the process was killed by signal 9"),
    ],
)
def test_a_process_that_dies(target: object, call: tuple[int], said: str) -> None:
    assert run_in_processes(target, [call], 60) == [ProcessResult(error=said)]  # type: ignore[arg-type]


def test_a_process_that_hangs_is_killed() -> None:
    start = time.monotonic()
    hanging, quick = run_in_processes(time.sleep, [(100,), (0,)], 5)
    assert hanging == ProcessResult(error="no answer within 5 s") and time.monotonic() - start < 30
    assert quick in (
        ProcessResult(None),
        ProcessResult(error="no answer within 5 s"),
    )  # a busy machine may not have started it


def test_an_answer_larger_than_a_pipe() -> None:
    assert run_in_processes(operator.mul, [(b"x", 1 << 20)], 60) == [ProcessResult(b"x" * (1 << 20))]


def test_a_process_may_have_processes() -> None:
    """A GPU's compiles in one of its own."""
    assert run_in_processes(run_in_processes, [(math.sqrt, [(16,)], 60.0)], 90) == [ProcessResult([ProcessResult(4.0)])]
