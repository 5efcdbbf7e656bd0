"""A comparison as one self-contained HTML page, with the report page's style, plots and pictures."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from transfer.comparison.differences import Comparison
from transfer.comparison.gallery import DifferingImage, draw_detections
from transfer.comparison.plots import all_plots
from transfer.comparison.texts import facts, grids, headline, sentences
from transfer.report.figures import style
from transfer.report.model import Report
from transfer.report.render.facts import FOLDER as REPORT_PAGE
from transfer.report.render.paths import PathShortener
from transfer.report.render.pictures import Picture, Prediction, data_uri, inline_svg
from transfer.tasks.task import Dataset

FOLDER = Path(__file__).resolve().parent / "page"


def render_page(found: Comparison, dataset: Dataset | None, show_machine: bool = False) -> str:
    """Render the page.

    Args:
        found: the comparison.
        dataset: the test split, for its pictures; None: there is no gallery.
        show_machine: keep absolute paths.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    runs = tuple(Path(side.word) for side in found.sides)
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=None if show_machine else PathShortener(Report("", (), runs=runs)),
    )
    with style.styled():
        drawn = [Picture(plot, inline_svg(style.to_svg(plot.draw()), plot)) for plot in all_plots(found)]
    return environment.get_template("comparison.html.j2").render(
        labels=[side.label for side in found.sides],
        words=[side.word for side in found.sides],
        headline=headline(found),
        facts=facts(found),
        sentences=sentences(found),
        plots={section: list(group) for section, group in groupby(drawn, lambda picture: picture.plot.section)},
        grids={section: list(group) for section, group in groupby(grids(found), lambda grid: grid.section)},
        photos=[(one, _pictures(found, one, dataset)) for one in found.images] if dataset else [],
        css=(REPORT_PAGE / "page.css").read_text(),
        js=(REPORT_PAGE / "page.js").read_text(),
    )


def _pictures(found: Comparison, one: DifferingImage, dataset: Dataset) -> list[Prediction]:
    """The image with each side's detections."""
    made = []
    for side, quality in zip(found.sides, (one.ours, one.theirs), strict=True):
        data = data_uri(draw_detections(dataset, one.index, side.found[0]))
        caption = f"{one.name}: {side.label}, true minus false positives {quality}"
        made.append(Prediction(caption, f"Image {one.name} with the detections of {side.label}", data))
    return made
