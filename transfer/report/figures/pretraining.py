"""Curves of pre-training: loss, std with the 1/√d line, kNN; a plot each, and all in one as the paper's Figure 2."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from transfer.report import curves
from transfer.report.figures import style
from transfer.report.figures.plot import PRETRAINING, Plot, slug
from transfer.report.figures.training import METRICS, Line, draw_lines, last_values, legend
from transfer.report.model import Report
from transfer.report.records import Pretraining

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUANTITIES = {
    "loss": ("loss", "Pre-training loss"),
    "std": ("std of z/‖z‖", "Std of the normalised output"),
    "knn_top1": ("kNN top-1 (%)", "kNN monitor"),
}
"""Metric to its axis and title."""
HEIGHT = 2.3


@dataclass(frozen=True)
class Panel:
    """What one set of axes shows.

    Attributes:
        name: the metric.
        lines: one a run that has it.
        ideal: output dimension to 1/√d; empty but for the std.
    """

    name: str
    lines: list[Line]
    ideal: dict[int, float]

    @property
    def title(self) -> str:
        """A few words."""
        return QUANTITIES[self.name][1]

    @property
    def alt(self) -> str:
        """What it shows, in words."""
        ideals = "".join(f" 1/√d is {value:.4f} for d = {dim}." for dim, value in self.ideal.items())
        return last_values(self.title, self.lines) + ideals

    def draw(self, axes: Axes) -> None:
        """Draw it on a set of axes."""
        axes.set(title=self.title, xlabel="iteration", ylabel=QUANTITIES[self.name][0])
        draw_lines(axes, self.lines)
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
    for panel in _panels(report):
        name = f"pretraining-{slug(panel.name)}"
        yield Plot(PRETRAINING, name, panel.title, panel.alt, partial(_side_by_side, [panel]))


def figure_2(report: Report) -> Iterator[Plot]:
    """The quantities side by side with one legend, as in Figure 2 of arXiv 2011.10566; for a file of its own."""
    panels = _panels(report)
    if len(panels) > 1:
        alt = " ".join(panel.alt for panel in panels)
        yield Plot(PRETRAINING, "pretraining", "Pre-training", alt, partial(_side_by_side, panels))


def _panels(report: Report) -> list[Panel]:
    runs = [(run, curves.read(run.folder / METRICS, ["loss", "std"], ["knn_top1"])) for run in report.pretraining]
    panels = []
    for name in QUANTITIES:
        lines = [(run.name, i, found.of(name)) for i, (run, found) in enumerate(runs) if found.of(name)]
        if lines:
            panels.append(Panel(name, lines, _ideals(report.pretraining) if name == "std" else {}))
    return panels


def _ideals(runs: Sequence[Pretraining]) -> dict[int, float]:
    """Output dimension to 1/√d, the std of an isotropic output (SimSiam paper, section 4.1)."""
    dims = {int(run.result["dim"]) for run in runs if isinstance(run.result.get("dim"), int) and run.result["dim"] > 0}
    return {dim: 1 / math.sqrt(dim) for dim in sorted(dims)}


def _side_by_side(panels: Sequence[Panel]) -> Figure:
    from matplotlib.figure import Figure

    fullest = max(panels, key=lambda panel: len(panel.lines))
    columns = 2 * len(panels)
    rows = math.ceil(len({label for label, _, _ in fullest.lines}) / columns)
    figure = Figure(figsize=(style.WIDTH * len(panels), HEIGHT + 0.2 * rows))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for one, panel in zip(axes, panels, strict=True):
        panel.draw(one)
    legend(figure, axes[panels.index(fullest)], columns)
    return figure
