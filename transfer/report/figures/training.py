"""Curves over iterations: pre-training (loss, std with the 1/√d line, kNN) and fine-tuning (loss, AP)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from transfer.report import curves
from transfer.report.curves import Curves
from transfer.report.figures import style
from transfer.report.figures.plot import FINETUNING, PRETRAINING, Plot, slug
from transfer.report.model import Report
from transfer.report.records import DONE, Pretraining, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = tuple[str, int, list[tuple[int, float]]]
"""A label, the number of its look, and its points."""
PANELS = {
    "loss": ("loss", "Pre-training loss"),
    "std": ("std of z/‖z‖", "Std of the normalised output"),
    "knn_top1": ("kNN top-1 (%)", "kNN monitor"),
}
METRICS = "metrics.json"


def pretraining_plots(report: Report) -> Iterator[Plot]:
    """Loss, std and kNN, all runs in one plot; a panel that no run has data for is left out."""
    runs = [(run, curves.read(run.folder / METRICS, ["loss", "std"], ["knn_top1"])) for run in report.pretraining]
    for name, (y, title) in PANELS.items():
        lines = [(run.name, i, found.of(name)) for i, (run, found) in enumerate(runs) if found.of(name)]
        if lines:
            ideal = _ideals(report.pretraining) if name == "std" else {}
            alt = _last_values(title, lines) + "".join(f" 1/√d is {v:.4f} for d = {d}." for d, v in ideal.items())
            yield Plot(
                PRETRAINING, f"pretraining-{slug(name)}", title, alt, partial(_pretraining, title, y, lines, ideal)
            )


def _ideals(runs: Sequence[Pretraining]) -> dict[int, float]:
    """Output dimension to 1/√d, the std of an isotropic output (SimSiam paper, section 4.1)."""
    dims = {int(run.result["dim"]) for run in runs if isinstance(run.result.get("dim"), int) and run.result["dim"] > 0}
    return {dim: 1 / math.sqrt(dim) for dim in sorted(dims)}


def _pretraining(title: str, y: str, lines: Sequence[Line], ideal: dict[int, float]) -> Figure:
    figure, axes = style.axes(title, "iteration", y, entries=len({label for label, _, _ in lines}))
    _lines(axes, lines)
    for dim, level in ideal.items():
        axes.axhline(level, color=style.INK, linewidth=1, linestyle=(0, (2, 2)))
        axes.annotate(
            f"1/√{dim}", (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8.5
        )
    if ideal:
        axes.set_ylim(0, 1.14 * max(*ideal.values(), *(value for _, _, points in lines for _, value in points)))
    _legend(figure, axes)
    return figure


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
                alt = _last_values(heading, lines)
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
    _lines(axes, lines, 1.0)
    _legend(figure, axes)
    return figure


def _lines(axes: Axes, lines: Sequence[Line], width: float = 1.5) -> None:
    """Each line in its look; of lines with one label (trials of a row) the first is named in the legend."""
    named: set[str] = set()
    for label, index, points in lines:
        look = style.look(index)
        if len(points) > 1:
            look.update(markevery=max(1, len(points) // 6), markersize=4)
        x, y = zip(*points, strict=True)
        axes.plot(x, y, linewidth=width, label=None if label in named else label, **look)
        named.add(label)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, handlelength=3.2)


def _last_values(title: str, lines: Sequence[Line]) -> str:
    ends = (f"{label} ends at {points[-1][1]:.4g} after {points[-1][0]} iterations" for label, _, points in lines[:12])
    more = f" and {len(lines) - 12} more lines" if len(lines) > 12 else ""
    return f"{title} over iterations. {'; '.join(ends)}{more}."
