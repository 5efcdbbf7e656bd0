"""Every trial as a dot, the mean with its 95 % interval as an error bar, and the published value; rows on one axis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from transfer.report.cells import bracketed, printed, samples, with_std
from transfer.report.figures import style
from transfer.report.figures.style import TRIALS, Plot, slug
from transfer.report.model import SEEDS, Row, Table, Value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Range = tuple[float, float]
INTERVALS = {False: ("95 % interval", "-"), True: ("95 %, seeds", ":")}
"""Name and line of an interval by whether it covers seeds alone."""
GAP, SHARE = 4.0, 0.5
"""The axis is broken where nothing lies for so many points and for this share of its length."""


@dataclass(frozen=True)
class Strip:
    """One row's trials, mean and published value of one metric."""

    row: Row
    value: Value
    trials: list[float]

    @property
    def interval(self) -> Range | None:
        """The mean's 95 % interval; None without one."""
        own = self.value.interval
        return (own.low, own.high) if own else None

    @property
    def paper(self) -> float | None:
        """The published value to mark."""
        return self.value.mean if self.row.published else self.value.published

    @property
    def shown(self) -> list[float]:
        """Every value that the strip shows, in ascending order."""
        return sorted(v for v in (*self.trials, self.paper, self.value.mean, *(self.interval or ())) if v is not None)

    @property
    def heading(self) -> str:
        """The row's label with the number of trials."""
        label = style.shortened(self.row.label)
        return label if self.row.published else f"{label} (n={len(self.trials)})"

    @property
    def alt(self) -> str:
        """The strip as text."""
        value = self.value
        shows_paper = value.published is not None and not self.row.published
        paper = f", published {printed(value.published)}" if shows_paper else ""
        mean = with_std(value.mean, value.std, "not averaged")
        own = f", 95 % interval {bracketed(*self.interval)}" if self.interval else ""
        return f"{self.row.label}: {mean}, n {len(self.trials)}{own}{paper}"


def trial_plots(table: Table) -> Iterator[Plot]:
    """One plot for each metric of each column that has a trial.

    A published row whose numbers stand beside a result's has no strip of its own: they are marked in the result's.
    """
    for column in table.columns:
        filled = [row for row in table.rows if (cell := row.cells.get(column.key)) and (row.published or cell.n)]
        if all(row.published for row in filled):
            continue
        marked = {row.expected for row in filled if not row.published}
        shown = style.first_rows(filled, table.against)
        rows = [row for row in shown if not (row.published and row.expected in marked)]
        results, drawn = (sum(not row.published for row in some) for some in (filled, rows))
        for metric in column.metrics:
            cells = [(row, row.cells[column.key]) for row in rows]
            strips = [Strip(row, cell.values[metric], samples(cell, column.branch, metric)) for row, cell in cells]
            title = f"{column.label}, {metric}{style.part_of(drawn, results, 'rows')}"
            yield Plot(
                section=TRIALS,
                name=f"trials-{slug(table.layout)}-{slug(column.key)}-{slug(metric)}",
                title=title,
                alt=f"{metric} of every trial and its mean. {'; '.join(s.alt for s in strips)}.",
                draw=partial(_draw, f"{title} (%)", [strip for strip in strips if strip.shown]),
            )


def _draw(title: str, strips: Sequence[Strip]) -> Figure:
    """Draw one strip for each row on one axis; it has two panels of the same scale where it is broken."""
    from matplotlib.figure import Figure

    panels = axis_panels([strip.shown for strip in strips])
    height = 0.95 + 0.38 * len(strips)
    figure = Figure(figsize=(style.WIDTH, height))
    made = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=[b - a for a, b in panels])[0]
    for axes, (low, high) in zip(made, panels, strict=True):
        for y, strip in enumerate(strips):
            axes.axhline(y, color=style.GRID, linewidth=0.6, zorder=0.5)
            _draw_strip(axes, y, strip, (low, high))
        axes.set_xlim(low, high)
        axes.set_ylim(len(strips) - 0.55, -0.75)
        axes.yaxis.set_visible(False)
        axes.patch.set_visible(False)
        axes.spines["left"].set_visible(False)
        share = (high - low) / sum(b - a for a, b in panels)
        axes.locator_params(axis="x", nbins=max(1, round(6.5 * share)), min_n_ticks=1, steps=[1, 2, 5, 10])
    for y, strip in enumerate(strips):
        heading = made[0].text(0, y - 0.28, strip.heading, size=9, va="bottom", transform=made[0].get_yaxis_transform())
        heading.set_in_layout(False)  # it runs over the second panel, which would have to make way
    if len(panels) > 1:
        slash: dict[str, Any] = {"marker": [(-1, -2), (1, 2)], "color": style.INK, "clip_on": False, "markersize": 7}
        made[0].plot([1], [0], transform=made[0].transAxes, **slash)
        made[1].plot([0], [0], transform=made[1].transAxes, **slash)
    figure.suptitle(title, x=0.02, ha="left", fontsize=10.5, fontweight="bold")
    named = {name: line for axes in made for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    tight = {"handletextpad": 0.3, "columnspacing": 1.2, "handlelength": 1.6}
    order = [
        name for name in ("trial", "mean", *(name for name, _ in INTERVALS.values()), "published") if name in named
    ]
    figure.legend([named[name] for name in order], order, loc="outside lower center", ncols=5, **tight)
    return figure


def axis_panels(strips: Sequence[Sequence[float]]) -> list[Range]:
    """The ranges of the axis: one, or two where a wide gap would press rows together that lie near each other.

    Args:
        strips: each row's values in ascending order.

    Returns:
        Ranges within 0 … 100, in ascending order.
    """
    extents = sorted((values[0], values[-1]) for values in strips)
    low, high = extents[0][0], max(end for _, end in extents)
    clusters = [[extents[0]]]
    for extent in extents[1:]:
        gap = extent[0] - max(end for _, end in clusters[-1])
        if len(clusters) == 1 and gap > GAP and gap > SHARE * (high - low):
            clusters.append([])
        clusters[-1].append(extent)
    if max(map(len, clusters)) < 2:
        clusters = [extents]
    edges = [(cluster[0][0], max(end for _, end in cluster)) for cluster in clusters]
    span = max(0.8, *(b - a for a, b in edges))
    padded = []
    for a, b in edges:
        width = max(1.12 * (b - a), 0.3 * span if len(edges) > 1 else span) + 0.1 * span
        start = min(max((a + b - width) / 2, 0.0), 100.0 - width) if width < 100 else 0.0
        padded.append((start, min(start + width, 100.0)))
    return padded


def _draw_strip(axes: Axes, y: int, strip: Strip, within: Range) -> None:
    """Draw what lies within a panel's range."""

    def inside(values: Sequence[float]) -> list[float]:
        return [v for v in values if within[0] <= v <= within[1]]

    hollow: dict[str, Any] = {"markerfacecolor": "none", "linestyle": "none", "clip_on": False}
    points = [(v, y + 0.12 * math.sin(2.4 * i)) for i, v in enumerate(strip.trials) if inside([v])]
    if points:
        axes.plot(*zip(*points, strict=True), "o", color=style.SERIES[0], markersize=4.5, label="trial", **hollow)
    if strip.interval and strip.value.interval and inside(strip.interval):
        name, line = INTERVALS[strip.value.interval.covers == SEEDS]
        cap: dict[str, Any] = {"marker": "|", "markersize": 5, "markeredgewidth": 1.2}
        axes.plot(strip.interval, [y, y], line, color=style.INK, linewidth=1.2, label=name, **cap)
    if strip.value.mean is not None and len(strip.trials) > 1 and inside([strip.value.mean]):
        bar: dict[str, Any] = {
            "color": style.INK,
            "markersize": 11,
            "markeredgewidth": 1.8,
            "linestyle": "none",
            "clip_on": False,
        }
        axes.plot([strip.value.mean], [y], "|", label="mean", **bar)
    if strip.paper is not None and inside([strip.paper]):
        axes.plot([strip.paper], [y], "D", color=style.SERIES[1], markersize=5.5, label="published", **hollow)
