"""Curves from a `metrics.json` (JSON lines, Detectron2's writer), thinned to what a plot can show."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MOST_POINTS = 300


@dataclass(frozen=True)
class Curves:
    """Series by metric name, each a list of (iteration, value) in rising order of iteration."""

    series: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def of(self, name: str) -> list[tuple[int, float]]:
        """One series; empty where the file has none of that name."""
        return self.series.get(name, [])


def read(path: Path, names: Sequence[str], always: Sequence[str] = ()) -> Curves:
    """Series of a metrics file; nothing where it does not exist.

    A resumed run repeats iterations: the later line wins. A last line cut short by a kill is left out.

    Args:
        path: the file.
        names: which metrics to take, from evenly spaced lines where there are more than 300.
        always: metrics measured rarely (evaluations): every line that holds one is taken.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return Curves()
    found: dict[str, dict[int, float]] = {}
    rare = [name.encode() for name in always]
    keep = _spaced(len(lines))
    for index, line in enumerate(lines):
        if keep(index) or any(name in line for name in rare):
            _take(line, (*names, *always), found)
    return Curves({name: sorted(points.items()) for name, points in found.items()})


def _spaced(count: int) -> Callable[[int], bool]:
    step = max(1, math.ceil(count / MOST_POINTS))
    return lambda index: index % step == 0 or index == count - 1


def _take(line: bytes, names: Sequence[str], found: dict[str, dict[int, float]]) -> None:
    try:
        content = json.loads(line)
    except ValueError:
        return
    iteration = content.get("iteration") if isinstance(content, dict) else None
    if not isinstance(iteration, int):
        return
    for name in names:
        value = content.get(name)
        if isinstance(value, (int, float)) and math.isfinite(value):
            found.setdefault(name, {})[iteration] = float(value)
