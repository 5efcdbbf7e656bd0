"""AP of every class; each row of the table is a marker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from transfer.report import statistics
from transfer.report.collection import Trial
from transfer.report.figures import style
from transfer.report.figures.style import CLASSES, Plot, slug
from transfer.report.model import Column, Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ClassTable:
    """AP per class on one column.

    Attributes:
        column: the column.
        names: the classes, sorted.
        rows: each row with its classes' AP, averaged over the counted trials.
    """

    column: Column
    names: list[str]
    rows: list[tuple[Row, dict[str, float | None]]]


def class_tables(table: Table) -> list[ClassTable]:
    """The columns whose results record AP per class; without rows that record none or are mixed."""
    made = []
    for column in table.columns:
        rows = []
        for row in table.rows:
            cell = row.cells.get(column.key)
            if cell is None or all(value.mean is None for value in cell.values.values()):
                continue
            if averaged := _average(cell.counted, column.branch):
                rows.append((row, averaged))
        if rows:
            made.append(ClassTable(column, sorted({name for _, values in rows for name in values}), rows))
    return made


def class_plots(table: Table) -> Iterator[Plot]:
    """One plot for each column with AP per class."""
    for found in class_tables(table):
        labels = ", ".join(row.label for row, _ in found.rows)
        yield Plot(
            CLASSES,
            f"classes-{slug(table.layout)}-{slug(found.column.key)}",
            f"{found.column.label}: AP per class",
            f"Mean AP of {len(found.names)} classes for {labels}; the figures stand in the table below.",
            partial(_draw, found),
        )


def _average(trials: Sequence[Trial], branch: str) -> dict[str, float | None]:
    found = [trial.per_class.get(branch, {}) for trial in trials]
    names = dict.fromkeys(name for classes in found for name in classes)
    return {name: statistics.mean([ap for c in found if (ap := c.get(name)) is not None]) for name in names}


def _draw(found: ClassTable) -> Figure:
    names = found.names
    title = f"{found.column.label}: AP per class"
    figure, axes = style.create_axes(title, "AP (%)", "", 1.0 + 0.19 * len(names), len(found.rows))
    for index, (row, classes) in enumerate(found.rows):
        points = [(ap, y) for y, name in enumerate(names) if (ap := classes.get(name)) is not None]
        x, y = zip(*points, strict=True) if points else ((), ())
        line_style = {**style.series_style(index), "linestyle": "none"}
        axes.plot(x, y, markersize=5, markerfacecolor="none", label=row.label, **line_style)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.06)
    figure.legend(loc="outside lower center", ncols=2)
    return figure
