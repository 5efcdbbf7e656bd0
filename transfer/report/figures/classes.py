"""AP of every class, a row of the table being a marker."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from transfer.report import statistics
from transfer.report.figures import style
from transfer.report.figures.plot import CLASSES, Plot, slug
from transfer.report.model import Column, Row, Table
from transfer.report.records import Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plots(table: Table) -> Iterator[Plot]:
    """One plot for each column whose results record AP per class."""
    for column in table.columns:
        found = by_row(table, column)
        if found:
            names = sorted({name for _, classes in found for name in classes})
            yield Plot(
                CLASSES,
                f"classes-{slug(table.layout)}-{slug(column.key)}",
                f"{column.label}: AP per class",
                _alt(names, found),
                partial(_draw, column, names, found),
            )


def by_row(table: Table, column: Column) -> list[tuple[Row, dict[str, float | None]]]:
    """Each row with its classes' AP, averaged over the counted trials; without rows that record none or are mixed."""
    made = []
    for row in table.rows:
        cell = row.cells.get(column.key)
        if cell is None or all(value.mean is None for value in cell.values.values()):
            continue
        if classes := _averaged(cell.counted, column.branch):
            made.append((row, classes))
    return made


def _alt(names: list[str], found: list[tuple[Row, dict[str, float | None]]]) -> str:
    rows = ", ".join(row.label for row, _ in found)
    return f"Mean AP of {len(names)} classes for {rows}; the figures stand in the table below."


def _averaged(trials: tuple[Trial, ...], branch: str) -> dict[str, float | None]:
    values: dict[str, list[float]] = {}
    for trial in trials:
        for name, ap in trial.per_class.get(branch, {}).items():
            values.setdefault(name, [])
            if ap is not None and math.isfinite(ap):
                values[name].append(ap)
    return {name: statistics.mean(found) for name, found in values.items()}


def _draw(column: Column, names: list[str], found: list[tuple[Row, dict[str, float | None]]]) -> Figure:
    figure, axes = style.axes(f"{column.label}: AP per class", "AP (%)", "", 1.0 + 0.19 * len(names), len(found))
    for index, (row, classes) in enumerate(found):
        points = [(ap, y) for y, name in enumerate(names) if (ap := classes.get(name)) is not None]
        x, y = zip(*points, strict=True) if points else ((), ())
        look = {**style.look(index), "linestyle": "none"}
        axes.plot(x, y, markersize=5, markerfacecolor="none", label=row.label, **look)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.06)
    figure.legend(loc="outside lower center", ncols=2)
    return figure
