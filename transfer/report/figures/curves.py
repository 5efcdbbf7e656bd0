"""Curves over iterations: pre-training (loss, std with the 1/√d line, kNN) and fine-tuning (loss, AP).

The paper's Figure 2 is the pre-training curves side by side.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ssl_transfer.errors import UserError
from ssl_transfer.files import open_input
from transfer.report.collection import DONE, PretrainingRun
from transfer.report.figures import style
from transfer.report.figures.style import FINETUNING, PRETRAINING, Plot, slug
from transfer.report.model import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = list[tuple[int, float]]
"""(iteration, value) in ascending order of the iteration."""
Curve = tuple[str, int, Points]
"""A label, the index of its style, and its points."""
METRICS_FILE = "metrics.json"
MAX_POINTS, MAX_RARE = 300, 1000
"""Points of a curve, and of one that is measured rarely."""
LONGEST_LINE, METRICS_LIMIT = 1 << 20, 4 << 30
QUANTITIES = {
    "loss": ("loss", "Pre-training loss"),
    "std": ("std of z/‖z‖", "Std of the normalised output"),
    "knn_top1": ("kNN top-1 (%)", "kNN monitor"),
}
"""Metric to its axis label and title."""
HEIGHT = 2.3


def read_series(
    path: Path, names: Sequence[str], rare: Sequence[str] = (), points: int = MAX_POINTS
) -> dict[str, Points]:
    """Read series of a metrics file (JSON lines, Detectron2's writer); nothing if it does not exist.

    A resumed run repeats iterations: the later line wins. A last line cut short by a kill is left out. The file is
    read in pieces, and never held whole.

    Args:
        path: the file.
        names: metrics to read, from evenly spaced lines if there are more than `points`.
        rare: metrics measured rarely (evaluations): every line that holds one is read.
        points: of a series of `names`.
    """
    found: dict[str, dict[int, float]] = {}
    always = [name.encode() for name in rare]
    try:
        with open_input(path, METRICS_LIMIT) as stream:
            marks = Counter(any(name in line for name in always) for line in _lines(stream))
            count = marks.total()
            step, rare_step = max(1, math.ceil(count / points)), math.ceil(marks[True] / MAX_RARE)
            stream.seek(0)
            seen = 0
            for index, line in enumerate(_lines(stream)):
                is_rare = any(name in line for name in always)
                seen += is_rare
                if is_rare and (seen % rare_step == 0 or seen == marks[True]):
                    _add_points(line, (*names, *rare), found)
                elif index % step == 0 or index == count - 1:
                    _add_points(line, names if is_rare else (*names, *rare), found)
    except (OSError, UserError):
        return {}
    return {name: sorted(series.items()) for name, series in found.items()}


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: stream.readline(LONGEST_LINE), b"")


def _add_points(line: bytes, names: Sequence[str], found: dict[str, dict[int, float]]) -> None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return
    iteration = content.get("iteration") if isinstance(content, dict) else None
    if not isinstance(iteration, int):
        return
    for name in names:
        value = content.get(name)
        if isinstance(value, (int, float)) and math.isfinite(value):
            found.setdefault(name, {})[iteration] = float(value)


@dataclass(frozen=True)
class Panel:
    """What one set of axes shows.

    Attributes:
        title: the heading.
        y: label of the y axis.
        lines: the curves; those with one label (trials of a row) are named once.
        ideal: output dimension to 1/√d; empty except for the std of pre-training.
        width: of the lines.
    """

    title: str
    y: str
    lines: list[Curve]
    ideal: dict[int, float] = field(default_factory=dict)
    width: float = 1.5

    @property
    def alt(self) -> str:
        """The title and where each line ends, as text."""
        ends = [f"{label} ends at {end[1]:.4g} after {end[0]} iterations" for label, _, (*_, end) in self.lines[:12]]
        more = f" and {len(self.lines) - 12} more lines" if len(self.lines) > 12 else ""
        ideals = "".join(f" 1/√d is {value:.4f} for d = {dim}." for dim, value in self.ideal.items())
        return f"{self.title} over iterations. {'; '.join(ends)}{more}." + ideals

    def draw(self, axes: Axes) -> None:
        """Draw it on a set of axes."""
        axes.set(title=self.title, xlabel="iteration", ylabel=self.y)
        named: set[str] = set()
        for label, index, points in self.lines:
            line_style = style.series_style(index)
            if len(points) > 1:
                line_style.update(markevery=max(1, len(points) // 6), markersize=4)
            x, y = zip(*points, strict=True)
            axes.plot(
                x, y, linewidth=self.width, label=None if label in named else style.legend_label(label), **line_style
            )
            named.add(label)
        for dim, level in self.ideal.items():
            axes.axhline(level, color=style.INK, linewidth=1, linestyle=(0, (2, 2)))
            axes.annotate(
                f"1/√{dim}", (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8.5
            )
        if self.ideal:
            highest = max(*self.ideal.values(), *(value for _, _, points in self.lines for _, value in points))
            axes.set_ylim(0, 1.14 * highest)


def pretraining_plots(report: Report) -> Iterator[Plot]:
    """Loss, std and kNN, all runs in one plot; a quantity that no run has data for is left out."""
    for name, panel in _pretraining_panels(report).items():
        yield Plot(PRETRAINING, f"pretraining-{slug(name)}", panel.title, panel.alt, partial(_draw_panels, [panel]))


def figure_2(report: Report) -> Iterator[Plot]:
    """The quantities side by side with one legend, as in Figure 2 of arXiv 2011.10566; for a file of its own."""
    panels = list(_pretraining_panels(report).values())
    if len(panels) > 1:
        alt = " ".join(panel.alt for panel in panels)
        yield Plot(PRETRAINING, "pretraining", "Pre-training", alt, partial(_draw_panels, panels))


def _pretraining_panels(report: Report) -> dict[str, Panel]:
    """Metric to its panel."""
    shown = report.pretraining[: style.MAX_ROWS]
    part = style.part_of(len(shown), len(report.pretraining), "runs")
    runs = [(run, read_series(run.folder / METRICS_FILE, ["loss", "std"], ["knn_top1"])) for run in shown]
    panels = {}
    for name, (y, title) in QUANTITIES.items():
        lines = [(run.name, i, series[name]) for i, (run, series) in enumerate(runs) if name in series]
        if lines:
            panels[name] = Panel(title + part, y, lines, _ideals(shown) if name == "std" else {})
    return panels


def _ideals(runs: Sequence[PretrainingRun]) -> dict[int, float]:
    """Output dimension to 1/√d, the std of an isotropic output (SimSiam paper, section 4.1)."""
    dims = {run.result.dim for run in runs if run.result and run.result.dim}
    return {dim: 1 / math.sqrt(dim) for dim in sorted(dims) if dim > 0}


def finetuning_plots(report: Report) -> Iterator[Plot]:
    """The total loss of every trial, one plot for each task; and AP over iterations if it was measured in between."""
    rows: dict[str, tuple[int, str]] = {}
    for table in report.tables:
        results = [row for row in style.first_rows(table.rows, table.against) if not row.published]
        rows |= {row.key: (index, row.label) for index, row in enumerate(results)}
    for task in dict.fromkeys(trial.task for trial in report.trials):
        of_task = [trial for trial in report.trials if trial.task == task and not trial.imported]
        trials = style.spaced([trial for trial in of_task if trial.row in rows] or of_task, style.MAX_LINES)
        points = min(MAX_POINTS, style.MAX_POINTS // max(len(trials), 1))
        read = partial(read_series, names=["total_loss"], rare=["bbox/AP"], points=points)
        found = [(trial, read(trial.folder / METRICS_FILE)) for trial in trials]
        part = style.part_of(len(trials), len(of_task), "trials")
        for name, y, title in (
            ("total_loss", "total loss", f"{task}: fine-tuning loss{part}"),
            ("bbox/AP", "AP (%)", f"{task}: AP while fine-tuning{part}"),
        ):
            lines: list[Curve] = []
            for trial, series in found:
                index, label = rows.get(trial.row, (0, trial.row))
                if name in series:
                    curve = style.spaced(series[name], max(points, 2))
                    lines.append((label if trial.status == DONE else f"{label} (diverged)", index, curve))
            if any(len(points) > 1 for _, _, points in lines):
                panel, stem = Panel(title, y, lines, width=1.0), f"finetuning-{slug(task)}-{slug(name)}"
                yield Plot(FINETUNING, stem, title, panel.alt, partial(_draw_panels, [panel]))


def _draw_panels(panels: Sequence[Panel]) -> Figure:
    """Draw the panels side by side, with one legend below them."""
    from matplotlib.figure import Figure

    fullest = max(panels, key=lambda panel: len(panel.lines))
    named = {label for label, _, _ in fullest.lines}
    columns = style.legend_columns(named) * len(panels)
    rows = math.ceil(len(named) / columns)
    figure = Figure(figsize=(style.WIDTH * len(panels), HEIGHT + 0.2 * rows))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for one, panel in zip(axes, panels, strict=True):
        panel.draw(one)
    handles, labels = axes[panels.index(fullest)].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=3.2)
    return figure
