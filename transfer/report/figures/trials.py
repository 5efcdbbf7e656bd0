"""Every trial as a dot, the mean with its 95 % interval, and the published value beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from transfer.report import cells
from transfer.report.digits import printed, with_std
from transfer.report.figures import style
from transfer.report.figures.plot import TRIALS, Plot, slug
from transfer.report.model import Cell, Column, Row, Table
from transfer.report.statistics import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


COMMON = 2.5
"""One range for all strips may be so many times as wide as the widest strip needs."""


def plots(table: Table) -> Iterator[Plot]:
    """One plot for each metric of each column that has a trial."""
    for column in table.columns:
        rows = [row for row in table.rows if column.key in row.cells and (row.published or row.cells[column.key].n)]
        if not any(not row.published for row in rows):
            continue
        for metric in column.metrics:
            yield Plot(
                section=TRIALS,
                name=f"trials-{slug(table.layout)}-{slug(column.key)}-{slug(metric)}",
                title=f"{column.label}, {metric}",
                alt=_alt(rows, column, metric),
                draw=partial(_draw, rows, column, metric),
            )


def _alt(rows: list[Row], column: Column, metric: str) -> str:
    parts = []
    for row in rows:
        cell = row.cells[column.key]
        value = cell.values[metric]
        paper = f", published {printed(value.published)}" if value.published is not None and not row.published else ""
        parts.append(f"{row.label}: {with_std(value.mean, value.std, 'not averaged')}, n {cell.n}{paper}")
    return f"{metric} of every trial, mean and 95 % interval. " + "; ".join(parts) + "."


def _draw(rows: list[Row], column: Column, metric: str) -> Figure:
    """A strip a row, all of one scale: of one range too, to compare rows by eye, unless that hid how trials differ.

    Trials differ by tenths, rows often by tens: then each strip lies where its row's values are. The strips share one
    set of axes, in which x is the distance from the middle of the strip: fifty axes take minutes.
    """
    figure, axes = style.axes(f"{column.label}, {metric} (%)", "", "", 0.75 + 0.66 * len(rows))
    extents = [_extent(row.cells[column.key], column, metric) for row in rows]
    middles, span = _ranges(extents)
    for y, (row, middle) in enumerate(zip(rows, middles, strict=True)):
        _scale(axes, y, middle, span)
        axes.text(-span / 2, y - 0.28, _head(row, column), fontsize=9, va="bottom")
        _strip(axes, y, middle, row, column, metric)
    axes.set_xlim(-span / 2, span / 2)
    axes.set_ylim(len(rows) - 0.25, -0.75)
    axes.axis("off")
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=3, handletextpad=0.3)
    return figure


def _head(row: Row, column: Column) -> str:
    return row.label if row.published else f"{row.label} (n={row.cells[column.key].n})"


def _extent(cell: Cell, column: Column, metric: str) -> tuple[float, float]:
    """The lowest and highest value the strip has to show."""
    found = cells.samples(cell, column.branch, metric)
    value = cell.values[metric]
    shown = [*found, value.published, value.mean, *(mean_interval(found) if value.mean is not None else ())]
    known = [v for v in shown if v is not None] or [0.0]
    return min(known), max(known)


def _ranges(extents: list[tuple[float, float]]) -> tuple[list[float], float]:
    """The middle of each strip's range, and the width of all: one range for all where it is not much wider.

    Or where no strip has more than a point, which no range can hide.
    """
    span = 1.25 * max(0.8, *(high - low for low, high in extents))
    lowest, highest = min(low for low, _ in extents), max(high for _, high in extents)
    if highest - lowest <= COMMON * span or all(low == high for low, high in extents):
        return [(lowest + highest) / 2] * len(extents), max(span, 1.1 * (highest - lowest))
    return [(low + high) / 2 for low, high in extents], span


def _scale(axes: Axes, y: int, middle: float, span: float) -> None:
    """The strip's own axis, below it: a line, ticks and their numbers."""
    from matplotlib.ticker import MaxNLocator

    floor = y + 0.2
    axes.plot([-span / 2, span / 2], [floor, floor], color=style.INK, linewidth=0.8)
    ticks = [t for t in MaxNLocator(5).tick_values(middle - span / 2, middle + span / 2) if abs(t - middle) <= span / 2]
    axes.plot(
        [t - middle for t in ticks], [floor] * len(ticks), linestyle="none", marker=3, color=style.INK, markersize=3.5
    )
    for tick in ticks:
        if abs(tick - middle) < 0.47 * span:
            axes.text(tick - middle, floor + 0.08, f"{tick:g}", fontsize=8, ha="center", va="top")


def _strip(axes: Axes, y: int, middle: float, row: Row, column: Column, metric: str) -> None:
    cell = row.cells[column.key]
    value = cell.values[metric]
    found = cells.samples(cell, column.branch, metric)
    x, spread = [v - middle for v in found], [y + 0.12 * math.sin(2.4 * i) for i in range(len(found))]
    axes.plot(x, spread, "o", color=style.SERIES[0], markersize=4.5, markerfacecolor="none", label="trial")
    if value.mean is not None and found:
        low, high = mean_interval(found)
        ends = [low - middle, high - middle] if low is not None and high is not None else [value.mean - middle] * 2
        axes.plot(ends, [y, y], color=style.INK, linewidth=1.2, label="mean, 95 % interval")
        axes.plot([value.mean - middle], [y], "|", color=style.INK, markersize=13, markeredgewidth=1.8)
    paper = value.mean if row.published else value.published
    if paper is not None:
        axes.plot(
            [paper - middle], [y], "D", color=style.SERIES[1], markersize=5.5, markerfacecolor="none", label="published"
        )
