"""Every trial as a dot, the mean with its 95 % interval, and the published value."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from transfer.report.cells import printed, samples, with_std
from transfer.report.figures import style
from transfer.report.figures.style import TRIALS, Plot, slug
from transfer.report.model import Row, Table, Value
from transfer.report.statistics import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


COMMON = 2.5
"""All strips have the same range if it is at most so many times as wide as the widest strip needs."""


@dataclass(frozen=True)
class Strip:
    """One row's trials, mean and published value of one metric."""

    row: Row
    value: Value
    trials: list[float]

    @cached_property
    def interval(self) -> tuple[float | None, float | None]:
        """The mean's 95 % interval; None without a mean or for fewer than two trials."""
        return (None, None) if self.value.mean is None else mean_interval(self.trials)

    @property
    def extent(self) -> tuple[float, float]:
        """The lowest and highest value to show."""
        shown = [*self.trials, self.value.published, self.value.mean, *self.interval]
        known = [v for v in shown if v is not None] or [0.0]
        return min(known), max(known)

    @property
    def heading(self) -> str:
        """The row's label with the number of trials."""
        return self.row.label if self.row.published else f"{self.row.label} (n={len(self.trials)})"

    @property
    def alt(self) -> str:
        """The strip as text."""
        value = self.value
        shows_paper = value.published is not None and not self.row.published
        paper = f", published {printed(value.published)}" if shows_paper else ""
        mean = with_std(value.mean, value.std, "not averaged")
        return f"{self.row.label}: {mean}, n {len(self.trials)}{paper}"


def trial_plots(table: Table) -> Iterator[Plot]:
    """One plot for each metric of each column that has a trial."""
    for column in table.columns:
        filled = [row for row in table.rows if (cell := row.cells.get(column.key)) and (row.published or cell.n)]
        if all(row.published for row in filled):
            continue
        rows = style.first_rows(filled, table.against)
        for metric in column.metrics:
            cells = [(row, row.cells[column.key]) for row in rows]
            strips = [Strip(row, cell.values[metric], samples(cell, column.branch, metric)) for row, cell in cells]
            title = f"{column.label}, {metric}{style.part_of(len(rows), len(filled), 'rows')}"
            yield Plot(
                section=TRIALS,
                name=f"trials-{slug(table.layout)}-{slug(column.key)}-{slug(metric)}",
                title=title,
                alt=f"{metric} of every trial, mean and 95 % interval. {'; '.join(s.alt for s in strips)}.",
                draw=partial(_draw, f"{title} (%)", strips),
            )


def _draw(title: str, strips: Sequence[Strip]) -> Figure:
    """Draw one strip for each row, all with the same scale, and with the same range unless that hides differences.

    Trials differ by tenths, rows often by tens: then each strip has the range of its own values. The strips share one
    set of axes, in which x is the distance from the strip's middle: fifty axes take minutes.
    """
    figure, axes = style.create_axes(title, "", "", 0.75 + 0.66 * len(strips))
    middles, span = _ranges([strip.extent for strip in strips])
    for y, (strip, middle) in enumerate(zip(strips, middles, strict=True)):
        _draw_scale(axes, y, middle, span)
        axes.text(-span / 2, y - 0.28, strip.heading, fontsize=9, va="bottom")
        _draw_strip(axes, y, middle, strip)
    axes.set_xlim(-span / 2, span / 2)
    axes.set_ylim(len(strips) - 0.25, -0.75)
    axes.axis("off")
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=3, handletextpad=0.3)
    return figure


def _ranges(extents: list[tuple[float, float]]) -> tuple[list[float], float]:
    """The middle of each strip's range, and the common width.

    The ranges are the same if that is not much wider, or if no strip has more than a point.
    """
    span = 1.25 * max(0.8, *(high - low for low, high in extents))
    lowest, highest = min(low for low, _ in extents), max(high for _, high in extents)
    if highest - lowest <= COMMON * span or all(low == high for low, high in extents):
        return [(lowest + highest) / 2] * len(extents), max(span, 1.1 * (highest - lowest))
    return [(low + high) / 2 for low, high in extents], span


def _draw_scale(axes: Axes, y: int, middle: float, span: float) -> None:
    """The strip's own axis, below it: a line, ticks and their numbers."""
    from matplotlib.ticker import MaxNLocator

    floor = y + 0.2
    axes.plot([-span / 2, span / 2], [floor, floor], color=style.INK, linewidth=0.8)
    ticks = [t for t in MaxNLocator(5).tick_values(middle - span / 2, middle + span / 2) if abs(t - middle) <= span / 2]
    ink: dict[str, Any] = {"color": style.INK, "markersize": 3.5}
    axes.plot([t - middle for t in ticks], [floor] * len(ticks), linestyle="none", marker=3, **ink)
    for tick in ticks:
        if abs(tick - middle) < 0.47 * span:
            axes.text(tick - middle, floor + 0.08, f"{tick:g}", fontsize=8, ha="center", va="top")


def _draw_strip(axes: Axes, y: int, middle: float, strip: Strip) -> None:
    value, found = strip.value, strip.trials
    x, spread = [v - middle for v in found], [y + 0.12 * math.sin(2.4 * i) for i in range(len(found))]
    hollow: dict[str, Any] = {"markerfacecolor": "none"}
    axes.plot(x, spread, "o", color=style.SERIES[0], markersize=4.5, label="trial", **hollow)
    if value.mean is not None and found:
        low, high = strip.interval
        ends = [low - middle, high - middle] if low is not None and high is not None else [value.mean - middle] * 2
        axes.plot(ends, [y, y], color=style.INK, linewidth=1.2, label="mean, 95 % interval")
        axes.plot([value.mean - middle], [y], "|", color=style.INK, markersize=13, markeredgewidth=1.8)
    paper = value.mean if strip.row.published else value.published
    if paper is not None:
        axes.plot([paper - middle], [y], "D", color=style.SERIES[1], markersize=5.5, label="published", **hollow)
