"""The report's plots. matplotlib is imported only when one is drawn."""

from __future__ import annotations

from pathlib import Path

from transfer.report.figures import classes, pretraining, searches, style, training, trials
from transfer.report.figures.plot import Plot
from transfer.report.model import Report


def plots(report: Report) -> list[Plot]:
    """Every plot the report has data for, in the page's order."""
    made: list[Plot] = []
    for table in report.tables:
        made += trials.plots(table)
    made += pretraining.pretraining_plots(report)
    made += training.finetuning_plots(report)
    for table in report.tables:
        made += classes.plots(table)
    made += searches.plots(report)
    return made


def write_all(report: Report, folder: Path) -> list[Path]:
    """Write every plot into `folder` as `NAME.png` and `NAME.svg`, atomically, and `pretraining.*` (Figure 2's panels).

    Returns:
        The files.
    """
    from common.files import atomic_write, write_text

    written = []
    with style.styled():
        for plot in [*plots(report), *pretraining.figure_2(report)]:
            figure = plot.draw()
            with atomic_write(folder / f"{plot.name}.png") as stream:
                stream.write(style.png(figure))
            write_text(folder / f"{plot.name}.svg", style.svg(figure))
            written += [folder / f"{plot.name}.png", folder / f"{plot.name}.svg"]
    return written
