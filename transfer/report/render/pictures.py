"""Pictures inside the page: plots as SVG in the page's colors, predictions as JPEG."""

from __future__ import annotations

import base64
import html
import io
import re
from dataclasses import dataclass
from pathlib import Path

from transfer.report.collection import DONE, Trial
from transfer.report.figures import all_plots, style
from transfer.report.figures.style import Plot
from transfer.report.model import Report

PREDICTIONS, SUFFIXES = "predictions", {".png", ".jpg", ".jpeg"}
MAX_PER_TRIAL, MAX_PER_PAGE, LONGEST_SIDE = 4, 48, 480


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


def plot_pictures(report: Report) -> list[Picture]:
    """Every plot that the report has data for."""
    with style.styled():
        return [Picture(plot, inline_svg(style.to_svg(plot.draw()), plot)) for plot in all_plots(report)]


def inline_svg(text: str, plot: Plot) -> str:
    """Prepare matplotlib's SVG for a page: the theme's colors, a title and a description, and unique ids.

    Ids are prefixed with the plot's name, because several SVGs share one document.
    """
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{plot.name}-", body)
    for index, color in enumerate(style.SERIES):
        body = body.replace(color, f"var(--series-{index})")
    body = body.replace(style.INK, "currentColor").replace(style.GRID, "var(--grid)")
    title, described = f"{plot.name}-title", f"{plot.name}-description"
    head = f'<svg role="img" aria-labelledby="{title} {described}"'
    texts = (
        f'<title id="{title}">{html.escape(plot.title)}</title><desc id="{described}">{html.escape(plot.alt)}</desc>'
    )
    body = body.replace("<svg", head, 1)
    return re.sub(r"(<svg[^>]*>)", lambda found: found.group(1) + texts, body, count=1)


def predictions(report: Report) -> list[Prediction]:
    """A few pictures of the first finished trial of each row and task, from its folder `predictions/`."""
    first: dict[tuple[str, str], Trial] = {}
    for trial in report.trials:
        if trial.status == DONE and not trial.imported:
            first.setdefault((trial.row, trial.task), trial)
    made: list[Prediction] = []
    labels = report.labels
    for (row, task), trial in first.items():
        files = (path for path in (trial.folder / PREDICTIONS).glob("*") if path.suffix.lower() in SUFFIXES)
        for path in sorted(files)[:MAX_PER_TRIAL]:
            if len(made) < MAX_PER_PAGE and (data := _jpeg(path)):
                caption = f"{labels.get(row, row)} on {task}, seed {trial.seed}: {path.stem}"
                made.append(Prediction(caption, f"Detections drawn on the image {path.stem} by {caption}", data))
    return made


def _jpeg(path: Path) -> str | None:
    """The picture as a data URI, reduced in size; None if it is no picture."""
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
