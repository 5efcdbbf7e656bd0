"""Processes that answer, fail, die and hang."""

from __future__ import annotations

import math
import operator
import os
import signal
import time

import pytest

from transfer.doctor.deep.children import Answer, in_processes


def test_values_errors_and_environment_come_back_in_order() -> None:
    answers = in_processes(math.sqrt, [(9,), (-1,), (4,)], 60)
    assert answers[0] == Answer(3.0) and answers[2] == Answer(2.0)
    assert answers[1].value is None and answers[1].error.startswith("ValueError: ")
    env = [{"DOCTOR_TEST": "first"}, {"DOCTOR_TEST": "second"}]
    assert [answer.value for answer in in_processes(os.getenv, [("DOCTOR_TEST",)] * 2, 60, env)] == ["first", "second"]


@pytest.mark.parametrize(
    ("target", "call", "said"),
    [
        (os._exit, (3,), "the process left with code 3"),
        (signal.raise_signal, (signal.SIGKILL,), "the process died of signal 9"),
    ],
)
def test_a_process_that_dies(target: object, call: tuple[int], said: str) -> None:
    assert in_processes(target, [call], 60) == [Answer(error=said)]  # type: ignore[arg-type]


def test_a_process_that_hangs_is_killed() -> None:
    start = time.monotonic()
    hanging, quick = in_processes(time.sleep, [(100,), (0,)], 5)
    assert hanging == Answer(error="no answer within 5 s") and time.monotonic() - start < 30
    assert quick in (Answer(None), Answer(error="no answer within 5 s"))  # a busy machine may not have started it


def test_an_answer_larger_than_a_pipe() -> None:
    assert in_processes(operator.mul, [(b"x", 1 << 20)], 60) == [Answer(b"x" * (1 << 20))]


def test_a_process_may_have_processes() -> None:
    """A GPU's compiles in one of its own."""
    assert in_processes(in_processes, [(math.sqrt, [(16,)], 60.0)], 90) == [Answer([Answer(4.0)])]
