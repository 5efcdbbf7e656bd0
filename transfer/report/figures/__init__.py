"""The report's plots. matplotlib is imported only when one is drawn."""

from __future__ import annotations

from pathlib import Path

from transfer.report.figures import curves, per_class, searches, style, trials
from transfer.report.figures.style import Plot
from transfer.report.model import Report


def all_plots(report: Report) -> list[Plot]:
    """Every plot that the report has data for, in the page's order."""
    return [
        *(plot for table in report.tables for plot in trials.trial_plots(table)),
        *curves.pretraining_plots(report),
        *curves.finetuning_plots(report),
        *(plot for table in report.tables for plot in per_class.class_plots(table)),
        *searches.search_plots(report),
    ]


def write_all(report: Report, folder: Path) -> list[Path]:
    """Write every plot into `folder` as `NAME.png` and `NAME.svg`, atomically, and `pretraining.*` (Figure 2's panels).

    Returns:
        The files.
    """
    from ssl_transfer.files import atomic_write, remove_partial_files, write_text

    written = []
    if folder.is_dir():
        remove_partial_files(folder, ["*.png", "*.svg"])
    with style.styled():
        for plot in [*all_plots(report), *curves.figure_2(report)]:
            figure = plot.draw()
            with atomic_write(folder / f"{plot.name}.png") as stream:
                stream.write(style.to_png(figure))
            write_text(folder / f"{plot.name}.svg", style.to_svg(figure))
            written += [folder / f"{plot.name}.png", folder / f"{plot.name}.svg"]
    return written
