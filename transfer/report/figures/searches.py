"""The metric over the learning rates that were tried, and the chosen one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ssl_transfer.formats.results import LrSearchRecord
from transfer.report.figures import style
from transfer.report.figures.style import SEARCH, Plot, slug
from transfer.report.model import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Labelled = Sequence[tuple[str, LrSearchRecord]]
"""Searches of one task with their rows' labels."""


def search_plots(report: Report) -> Iterator[Plot]:
    """One plot for each task; each row of the table is a line."""
    records, labels = [search.record for search in report.searches], report.labels
    for task in dict.fromkeys(record.task for record in records):
        of_task = [record for record in records if record.task == task]
        found = [(labels.get(record.row, record.row), record) for record in of_task[: style.MAX_ROWS]]
        name, title = f"lr-search-{slug(task)}", f"{task}: lr search"
        title += style.part_of(len(found), len(of_task), "rows")
        yield Plot(SEARCH, name, title, _describe(task, found), partial(_draw, title, found))


def _describe(task: str, found: Labelled) -> str:
    parts = []
    for label, record in found:
        tried = ", ".join(f"{p.lr}: {p.value if p.value is not None else p.status or 'missing'}" for p in record.points)
        parts.append(f"{label} ({record.metric} on {record.split}): {tried}; chosen {record.chosen}")
    return f"Learning rates tried on {task}. " + "; ".join(parts) + "."


def _draw(title: str, found: Labelled) -> Figure:
    labels = [*(label for label, _ in found), "chosen", "no value"]
    figure, axes = style.create_axes(title, "learning rate", found[0][1].metric, labels=labels)
    chosen: list[tuple[float, float]] = []
    lost: list[float] = []
    for index, (label, record) in enumerate(found):
        points = sorted((p.lr, p.value) for p in record.points if p.value is not None)
        chosen += [point for point in points if point[0] == record.chosen]
        lost += [p.lr for p in record.points if p.value is None]
        line_style = style.series_style(index)
        axes.plot(
            [lr for lr, _ in points],
            [v for _, v in points],
            label=style.legend_label(label),
            markersize=5,
            **line_style,
        )
    ring: dict[str, Any] = {"color": style.INK, "markersize": 11, "markerfacecolor": "none"}
    axes.plot([lr for lr, _ in chosen], [v for _, v in chosen], "o", label="chosen", **ring)
    if lost:
        floor: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "color": style.INK}
        axes.plot(lost, [0.04] * len(lost), "x", label="no value", **floor)
    axes.set_xscale("log")
    axes.set_xticks(sorted({p.lr for _, record in found for p in record.points}))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    figure.legend(loc="outside lower center", ncols=style.legend_columns(labels))
    return figure
