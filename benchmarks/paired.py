"""Paired timings of our code and a named peer in the same run, after a check that their numbers are equal."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class PairedBenchmark:
    """One task that two implementations do.

    Attributes:
        name: the task.
        peer: the other implementation.
        ours: runs our implementation.
        theirs: runs the peer.
        equal: runs both once and returns how their numbers compare, such as `max |Δ| 0`; raises AssertionError where
            they differ by more than the limit.
        count: units (images, steps) that one call processes.
        unit: name of a unit.
    """

    name: str
    peer: str
    ours: Callable[[], object]
    theirs: Callable[[], object]
    equal: Callable[[], str]
    count: int
    unit: str


@dataclass(frozen=True)
class PairedMeasurement:
    """The result of a `PairedBenchmark`.

    Attributes:
        name, peer, unit: as in `PairedBenchmark`.
        ours, theirs: median units per second.
        ratio: median over the pairs of the peer's time over ours.
        lowest, highest: extremes of the ratio over the pairs.
        best: the peer's fastest time over our fastest; least affected by other processes on the machine.
        equality: the text that `PairedBenchmark.equal` returned.
    """

    name: str
    peer: str
    unit: str
    ours: float
    theirs: float
    ratio: float
    lowest: float
    highest: float
    best: float
    equality: str


def measure_pairs(benchmark: PairedBenchmark, pairs: int = 5) -> PairedMeasurement:
    """Check that the numbers are equal, warm up both implementations, then time them alternately.

    The two timings of a pair are adjacent, so that a drift of the machine's speed affects both equally.

    Args:
        benchmark: what to time.
        pairs: number of pairs.

    Raises:
        AssertionError: the numbers are not equal.
    """
    equality = benchmark.equal()
    benchmark.ours(), benchmark.theirs()
    times = [(_seconds(benchmark.ours), _seconds(benchmark.theirs)) for _ in range(pairs)]
    ratios = [theirs / ours for ours, theirs in times]
    return PairedMeasurement(
        benchmark.name,
        benchmark.peer,
        benchmark.unit,
        benchmark.count / statistics.median(ours for ours, _ in times),
        benchmark.count / statistics.median(theirs for _, theirs in times),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        min(theirs for _, theirs in times) / min(ours for ours, _ in times),
        equality,
    )


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
