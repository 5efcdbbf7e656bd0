"""The comparison's plots, in the style of the report's: bars of classes, precision-recall curves, bars of errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from transfer.comparison.differences import Comparison, Difference, Floats
from transfer.comparison.texts import BRANCHES
from transfer.comparison.tide import KINDS
from transfer.report.figures import style
from transfer.report.figures.style import CLASSES, Plot, legend_columns, legend_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CLASSES, MAX_CURVES = 80, 3


def all_plots(found: Comparison) -> Iterator[Plot]:
    """Every plot that the comparison has data for."""
    labels, known, names = [side.label for side in found.sides], {}, found.sides[0].found[0].classes
    alt = f"{{}} of {' and '.join(labels)}; the numbers are in the tables and in the JSON."
    for branch, parts in found.differences.items():
        known[branch] = [one for one in parts["classes"] if one.verdict]
        title = f"Difference of AP, {BRANCHES[branch]}{style.part_of(MAX_CLASSES, len(known[branch]), 'classes')}"
        if shown := known[branch][:MAX_CLASSES]:
            draw = partial(_classes, title, labels, shown)
            yield Plot(CLASSES, f"classes-{branch}", title, alt.format("AP per class"), draw)
    for number, name in enumerate(["", *(one.name for one in known["bbox"][:MAX_CURVES])]):
        title = f"Boxes at IoU 0.5: {name or 'mean of classes'}"
        curves = [each[names.index(name)] if name else np.nanmean(each, axis=0) for each in found.curves]
        draw = partial(_curves, title, labels, curves)
        yield Plot("curves", f"curve-{number}", title, alt.format(f"Precision over recall, {title},"), draw)
    if found.errors is not None:
        gains = [[errors[kind][0] for kind in KINDS] for errors in found.errors]
        title = "AP50 gained without each kind"
        yield Plot("errors", "errors", title, alt.format(title), partial(_errors, title, labels, gains))


def _bars(title: str, x: str, names: Sequence[str], labels: Sequence[str]) -> tuple[Figure, Axes]:
    """Axes for horizontal bars of `names`, the first one on top."""
    figure, axes = style.create_axes(title, x, "", 1.0 + 0.22 * len(names), labels)
    axes.set_yticks(range(len(names)), list(map(style.shortened, names)), fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.axvline(0.0, color=style.INK, linewidth=0.8)
    return figure, axes


def _classes(title: str, sides: Sequence[str], shown: Sequence[Difference]) -> Figure:
    labels = [f"{side} is better" for side in sides]
    figure, axes = _bars(title, "AP (%)", [one.name for one in shown], labels)
    away = np.array([one.verdict.difference for one in shown if one.verdict])
    for index, (label, part) in enumerate(zip(labels, (away > 0, away < 0), strict=True)):
        if part.any():
            axes.barh(np.flatnonzero(part), away[part], 0.62, color=style.SERIES[index], label=legend_label(label))
    low, high = np.array([(one.verdict.low, one.verdict.high) for one in shown if one.verdict]).T
    axes.hlines(range(len(low)), low, high, style.INK, linewidth=1)
    figure.legend(loc="outside lower center", ncols=legend_columns(labels))
    return figure


def _errors(title: str, labels: Sequence[str], gains: Sequence[Sequence[float]]) -> Figure:
    figure, axes = _bars(title, "AP50 (%)", KINDS, labels)
    for index, (label, values) in enumerate(zip(labels, gains, strict=True)):
        places = np.arange(len(KINDS)) + 0.4 * (index - 0.5)
        axes.barh(places, values, 0.36, color=style.SERIES[index], label=legend_label(label))
    figure.legend(loc="outside lower center", ncols=legend_columns(labels))
    return figure


def _curves(title: str, labels: Sequence[str], curves: Sequence[Floats]) -> Figure:
    figure, axes = style.create_axes(title, "recall", "precision", labels=labels)
    for index, (curve, label) in enumerate(zip(curves, labels, strict=True)):
        line = {**style.series_style(index), "marker": None}
        axes.plot(np.linspace(0, 1, len(curve)), curve, label=legend_label(label), **line)
    axes.set(xlim=(0, 1), ylim=(0, 1.03))
    figure.legend(loc="outside lower center", ncols=legend_columns(labels))
    return figure
