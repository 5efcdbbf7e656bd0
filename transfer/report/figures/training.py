"""Curves over iterations of fine-tuning (loss, AP); and how lines, their legend and their last values are shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from transfer.report import curves
from transfer.report.curves import Curves
from transfer.report.figures import style
from transfer.report.figures.plot import FINETUNING, Plot, slug
from transfer.report.model import Report
from transfer.report.records import DONE, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = tuple[str, int, list[tuple[int, float]]]
"""A label, the number of its look, and its points."""
METRICS = "metrics.json"


def finetuning_plots(report: Report) -> Iterator[Plot]:
    """The total loss of every trial, one plot a task; and AP over iterations where it was evaluated on the way."""
    rows = {
        row.key: (i, row.label)
        for table in report.tables
        for i, row in enumerate(r for r in table.rows if not r.published)
    }
    tasks = dict.fromkeys(trial.task for trial in report.trials)
    for task in tasks:
        trials = [trial for trial in report.trials if trial.task == task and not trial.imported]
        found = [(trial, curves.read(trial.folder / METRICS, ["total_loss"], ["bbox/AP"])) for trial in trials]
        for name, y, title in (
            ("total_loss", "total loss", "fine-tuning loss"),
            ("bbox/AP", "AP (%)", "AP while fine-tuning"),
        ):
            lines = _trial_lines(found, name, rows)
            if any(len(points) > 1 for _, _, points in lines):
                heading = f"{task}: {title}"
                alt = last_values(heading, lines)
                yield Plot(
                    FINETUNING,
                    f"finetuning-{slug(task)}-{slug(name)}",
                    heading,
                    alt,
                    partial(_finetuning, heading, y, lines),
                )


def _trial_lines(found: Sequence[tuple[Trial, Curves]], name: str, rows: dict[str, tuple[int, str]]) -> list[Line]:
    lines = []
    for trial, series in found:
        index, label = rows.get(trial.row, (0, trial.row))
        if points := series.of(name):
            lines.append((label if trial.status == DONE else f"{label} (diverged)", index, points))
    return lines


def _finetuning(title: str, y: str, lines: Sequence[Line]) -> Figure:
    figure, axes = style.axes(title, "iteration", y, entries=len({label for label, _, _ in lines}))
    draw_lines(axes, lines, 1.0)
    legend(figure, axes)
    return figure


def draw_lines(axes: Axes, lines: Sequence[Line], width: float = 1.5) -> None:
    """Each line in its look; of lines with one label (trials of a row) the first is named in the legend."""
    named: set[str] = set()
    for label, index, points in lines:
        look = style.look(index)
        if len(points) > 1:
            look.update(markevery=max(1, len(points) // 6), markersize=4)
        x, y = zip(*points, strict=True)
        axes.plot(x, y, linewidth=width, label=None if label in named else label, **look)
        named.add(label)


def legend(figure: Figure, axes: Axes, columns: int = 2) -> None:
    """The names of the lines, below the plot."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=3.2)


def last_values(title: str, lines: Sequence[Line]) -> str:
    """Where each line ends, in words."""
    ends = (f"{label} ends at {points[-1][1]:.4g} after {points[-1][0]} iterations" for label, _, points in lines[:12])
    more = f" and {len(lines) - 12} more lines" if len(lines) > 12 else ""
    return f"{title} over iterations. {'; '.join(ends)}{more}."
