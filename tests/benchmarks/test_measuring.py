"""A benchmark is measured in a fresh process; work that fails or lacks the expected output is an error."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks.isolated import CALL, MIB, Benchmark, machine, measure_benchmark
from benchmarks.paired import PairedBenchmark, measure_pairs

HERE = "tests.benchmarks.test_measuring"


def filled(mib: str) -> object:
    """Work that takes memory and a little time, after more memory was allocated and freed."""
    bytearray(4 * int(mib) * MIB)

    def work() -> str:
        page = b"\1" * (int(mib) * MIB)
        time.sleep(0.2)
        return f"{len(page)} bytes"

    return work


def test_work_is_measured_without_what_came_before_it(tmp_path: Path) -> None:
    cost = Benchmark("filling", (CALL, f"{HERE}:filled", "64"), 64, "MiB", f"{64 * MIB} bytes")
    spent = measure_benchmark(cost, tmp_path)
    assert spent.output == f"{64 * MIB} bytes" and (spent.name, spent.size, spent.unit) == ("filling", 64, "MiB")
    assert 60 < spent.added_mib < 90 and spent.added_mib < spent.peak_mib < 200
    assert 0.2 <= spent.seconds < 5


def test_a_command_is_measured_whole(tmp_path: Path) -> None:
    made = "import sys; page = bytes(10) + b'x' * (50 * 2**20); print(open(sys.argv[1]).read())"
    cost = Benchmark("a command", ("-c", made, "{folder}/word"), expected="ready", prepare=lambda f: _write(f / "word"))
    spent = measure_benchmark(cost, tmp_path)
    assert spent.output == "ready" and 50 < spent.peak_mib == spent.added_mib < 300 and spent.seconds > 0


def _write(file: Path) -> None:
    file.write_text("ready")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-c", "import sys; sys.exit('it broke')"), "exit code 1: it broke"),
        (("-c", "print('something else')"), "'the answer' is not in its output: something else"),
        ((CALL, f"{HERE}:filled", "1"), "'the answer' is not in its output"),
        ((CALL, f"{HERE}:missing"), "exit code 1"),
    ],
)
def test_what_failed_has_no_cost(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        measure_benchmark(Benchmark("broken", words, expected="the answer"), tmp_path)


def test_figures_say_where_they_come_from() -> None:
    found = machine()
    assert found["processor"] and int(str(found["cores"])) >= 1 and str(found["torch"])[0].isdigit()


def test_a_comparison_whose_numbers_differ_is_not_timed() -> None:
    timed: list[str] = []

    def equal() -> str:
        raise AssertionError("they differ")

    unequal = PairedBenchmark("a", "b", lambda: timed.append("ours"), lambda: timed.append("theirs"), equal, 1, "steps")
    with pytest.raises(AssertionError, match="they differ"):
        measure_pairs(unequal)
    assert not timed


def test_a_ratio_is_the_peers_time_over_ours() -> None:
    row = measure_pairs(
        PairedBenchmark("a", "b", lambda: time.sleep(0.01), lambda: time.sleep(0.1), lambda: "same", 2, "steps"), 3
    )
    assert (
        2 < row.lowest <= row.ratio <= row.highest and row.best > 2 and row.ours > row.theirs and row.equality == "same"
    )
