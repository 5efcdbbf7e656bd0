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
        rows: each row with its classes' AP, averaged over the counted trials; no more than a plot shows.
        title: the heading.
    """

    column: Column
    names: list[str]
    rows: list[tuple[Row, dict[str, float | None]]]
    title: str


def class_tables(table: Table) -> list[ClassTable]:
    """The columns whose results record AP per class; without rows that record none or are mixed."""
    made = []
    for column in table.columns:
        found = [
            row
            for row in table.rows
            if (cell := row.cells.get(column.key)) is not None
            and any(value.mean is not None for value in cell.values.values())
            and any(trial.per_class.get(column.branch) for trial in cell.counted)
        ]
        shown = style.first_rows(found, table.against)
        rows = [(row, _average(row.cells[column.key].counted, column.branch)) for row in shown]
        if rows:
            names = sorted({name for _, values in rows for name in values})
            title = f"{column.label}: AP per class{style.part_of(len(shown), len(found), 'rows')}"
            made.append(ClassTable(column, names, rows, title))
    return made


def class_plots(table: Table) -> Iterator[Plot]:
    """One plot for each column with AP per class."""
    for found in class_tables(table):
        labels = ", ".join(row.label for row, _ in found.rows)
        yield Plot(
            CLASSES,
            f"classes-{slug(table.layout)}-{slug(found.column.key)}",
            found.title,
            f"Mean AP of {len(found.names)} classes for {labels}; the numbers are in the table below.",
            partial(_draw, found),
        )


def _average(trials: Sequence[Trial], branch: str) -> dict[str, float | None]:
    found = [trial.per_class.get(branch, {}) for trial in trials]
    names = dict.fromkeys(name for classes in found for name in classes)
    return {name: statistics.mean([ap for c in found if (ap := c.get(name)) is not None]) for name in names}


def _draw(found: ClassTable) -> Figure:
    names, labels = found.names, [row.label for row, _ in found.rows]
    figure, axes = style.create_axes(found.title, "AP (%)", "", 1.0 + 0.19 * len(names), labels)
    for index, (row, classes) in enumerate(found.rows):
        points = [(ap, y) for y, name in enumerate(names) if (ap := classes.get(name)) is not None]
        x, y = zip(*points, strict=True) if points else ((), ())
        line_style = {**style.series_style(index), "linestyle": "none"}
        axes.plot(x, y, markersize=5, markerfacecolor="none", label=style.legend_label(row.label), **line_style)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.06)
    figure.legend(loc="outside lower center", ncols=style.legend_columns(labels))
    return figure
