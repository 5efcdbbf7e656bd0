"""Pictures that lie inside the page: plots as SVG that follows its theme, predictions as JPEG."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transfer.report.figures import plots, style
from transfer.report.figures.plot import Plot
from transfer.report.model import Report
from transfer.report.records import DONE, Trial

PREDICTIONS, SUFFIXES = "predictions", {".png", ".jpg", ".jpeg"}
MOST_A_TRIAL, MOST_A_PAGE, LONGEST_SIDE = 4, 48, 480


@dataclass(frozen=True)
class Picture:
    """A plot ready for the page."""

    plot: Plot
    svg: str


@dataclass(frozen=True)
class Prediction:
    """A picture with a trial's detections drawn on it; `data` is a data URI."""

    caption: str
    alt: str
    data: str


def pictures(report: Report) -> list[Picture]:
    """Every plot the report has data for."""
    made = []
    with style.styled():
        for plot in plots(report):
            made.append(Picture(plot, inline(style.svg(plot.draw()), plot)))
    return made


def inline(text: str, plot: Plot) -> str:
    """matplotlib's SVG for use inside a page: ids of its own, colours of the theme, a title and a description.

    Ids are prefixed with the plot's name, for several SVGs share one document.
    """
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{plot.name}-", body)
    for index, colour in enumerate(style.SERIES):
        body = body.replace(colour, f"var(--series-{index})")
    body = body.replace(style.INK, "currentColor").replace(style.GRID, "var(--grid)")
    title, described = f"{plot.name}-title", f"{plot.name}-description"
    head = f'<svg role="img" aria-labelledby="{title} {described}"'
    words = (
        f'<title id="{title}">{html.escape(plot.title)}</title><desc id="{described}">{html.escape(plot.alt)}</desc>'
    )
    body = body.replace("<svg", head, 1)
    return re.sub(r"(<svg[^>]*>)", lambda found: found.group(1) + words, body, count=1)


def predictions(report: Report) -> list[Prediction]:
    """A few pictures of the first finished trial of each row and task, from its folder `predictions/`."""
    labels = {row.key: row.label for table in report.tables for row in table.rows}
    first: dict[tuple[str, str], Trial] = {}
    for trial in report.trials:
        if trial.status == DONE and not trial.imported:
            first.setdefault((trial.row, trial.task), trial)
    made: list[Prediction] = []
    for (row, task), trial in first.items():
        for path in _files(trial.folder / PREDICTIONS)[:MOST_A_TRIAL]:
            if len(made) < MOST_A_PAGE and (data := _jpeg(path)):
                words = f"{labels.get(row, row)} on {task}, seed {trial.seed}: {path.stem}"
                made.append(Prediction(words, f"Detections drawn on the image {path.stem} by {words}", data))
    return made


def _files(folder: Path) -> Sequence[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError:
        return []


def _jpeg(path: Path) -> str | None:
    """The picture as a data URI, shrunk to what a page can carry; None where it is no picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
