"""Ours beside a named peer, in the same run: paired timings, and whether the numbers are equal."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """One thing that is done in two ways.

    Attributes:
        what: what is done.
        peer: who does it the other way.
        ours: does it our way.
        theirs: does it the peer's way.
        equal: runs both once and says how their numbers compare, such as `max |Δ| 0`; raises AssertionError where they
            differ by more than they may.
        count: how many units (images, steps) one call does.
        unit: what a unit is.
    """

    what: str
    peer: str
    ours: Callable[[], object]
    theirs: Callable[[], object]
    equal: Callable[[], str]
    count: int
    unit: str


@dataclass(frozen=True)
class Measured:
    """What a comparison gave.

    Attributes:
        what, peer, unit: as in `Comparison`.
        ours, theirs: median units a second.
        ratio: median over the pairs of how many times faster ours was.
        lowest, highest: the pairs' extremes.
        best: the peer's fastest time over our fastest: what another process on the machine disturbs least.
        equality: what `Comparison.equal` said.
    """

    what: str
    peer: str
    unit: str
    ours: float
    theirs: float
    ratio: float
    lowest: float
    highest: float
    best: float
    equality: str


def measure(comparison: Comparison, pairs: int = 5) -> Measured:
    """Check that the numbers are equal, warm both up, then time them in turn.

    A pair's two timings lie next to each other, so that a machine whose speed drifts slows both alike.

    Args:
        comparison: what to time.
        pairs: how many pairs.

    Raises:
        AssertionError: the numbers are not equal.
    """
    equality = comparison.equal()
    comparison.ours(), comparison.theirs()
    times = [(_seconds(comparison.ours), _seconds(comparison.theirs)) for _ in range(pairs)]
    ratios = [theirs / ours for ours, theirs in times]
    return Measured(
        comparison.what,
        comparison.peer,
        comparison.unit,
        comparison.count / statistics.median(ours for ours, _ in times),
        comparison.count / statistics.median(theirs for _, theirs in times),
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
