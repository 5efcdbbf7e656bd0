"""The metric over the learning rates that were tried, and the one chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from transfer.report.figures import style
from transfer.report.figures.plot import SEARCH, Plot, slug
from transfer.report.model import Report
from transfer.report.records import Search

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plots(report: Report) -> Iterator[Plot]:
    """One plot a task, a row of the table being a line."""
    labels = {row.key: row.label for table in report.tables for row in table.rows}
    for task in dict.fromkeys(search.task for search in report.searches):
        found = [(labels.get(search.row, search.row), search) for search in report.searches if search.task == task]
        yield Plot(
            SEARCH, f"lr-search-{slug(task)}", f"{task}: lr search", _alt(task, found), partial(_draw, task, found)
        )


def _alt(task: str, found: Sequence[tuple[str, Search]]) -> str:
    parts = []
    for label, search in found:
        tried = ", ".join(
            f"{p['lr']}: {_value(p) if _value(p) is not None else p.get('status', 'missing')}" for p in search.points
        )
        parts.append(f"{label} ({search.metric} on {search.split}): {tried}; chosen {search.chosen}")
    return f"Learning rates tried on {task}. " + "; ".join(parts) + "."


def _value(point: Mapping[str, Any]) -> float | None:
    value = point.get("value")
    return float(value) if isinstance(value, (int, float)) else None


def _draw(task: str, found: Sequence[tuple[str, Search]]) -> Figure:
    figure, axes = style.axes(f"{task}: lr search", "learning rate", found[0][1].metric, entries=len(found) + 2)
    chosen: list[tuple[float, float]] = []
    lost: list[float] = []
    for index, (label, search) in enumerate(found):
        points = sorted((float(p["lr"]), v) for p in search.points if (v := _value(p)) is not None)
        chosen += [point for point in points if point[0] == search.chosen]
        lost += [float(p["lr"]) for p in search.points if _value(p) is None]
        axes.plot([lr for lr, _ in points], [v for _, v in points], label=label, markersize=5, **style.look(index))
    ring: dict[str, Any] = {"color": style.INK, "markersize": 11, "markerfacecolor": "none"}
    axes.plot([lr for lr, _ in chosen], [v for _, v in chosen], "o", label="chosen", **ring)
    if lost:
        floor: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "color": style.INK}
        axes.plot(lost, [0.04] * len(lost), "x", label="no value (diverged, missing)", **floor)
    axes.set_xscale("log")
    axes.set_xticks(sorted({float(p["lr"]) for _, search in found for p in search.points}))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    figure.legend(loc="outside lower center", ncols=2)
    return figure
