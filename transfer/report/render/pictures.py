"""Pictures inside the page: plots as SVG in the page's colors, predictions as JPEG."""

from __future__ import annotations

import base64
import html
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transfer.report.collection import DONE
from transfer.report.figures import all_plots, style
from transfer.report.figures.style import Plot
from transfer.report.model import Report

if TYPE_CHECKING:
    from PIL.Image import Image

PREDICTIONS, SUFFIXES = "predictions", {".png", ".jpg", ".jpeg"}
MAX_PER_ROW, MAX_PER_PAGE, LONGEST_SIDE = 4, 48, 640


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


@dataclass(frozen=True)
class PredictionGrid:
    """A task's pictures: one line for each image, with one for each of the rows' labels; None where a row has none."""

    task: str
    rows: list[str]
    lines: list[tuple[str, list[Prediction | None]]]


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


def predictions(report: Report) -> list[PredictionGrid]:
    """A few pictures of the first finished trial of each row with any, the same images for all rows of a task."""
    first: dict[tuple[str, str], dict[str, Path]] = {}
    for trial in report.trials:
        if trial.status == DONE and not trial.imported and not first.get((trial.task, trial.row)):
            found = sorted((trial.folder / PREDICTIONS).glob("*"))
            first[trial.task, trial.row] = {path.stem: path for path in found if path.suffix.lower() in SUFFIXES}
    made, left, labels = [], MAX_PER_PAGE, report.labels
    for task in dict.fromkeys(task for task, _ in first):
        files = {row: first[task, row] for row in labels if first.get((task, row))}
        rows = list(files)[: left // MAX_PER_ROW]
        names = sorted({name for row in rows for name in files[row]})
        names = [name for name in names if all(name in files[row] for row in rows)] or names
        grid = PredictionGrid(task, [labels[row] for row in rows], [])
        for name in names:
            line = [_prediction(files[row].get(name), name, labels[row], task) for row in rows]
            if any(line) and len(grid.lines) < MAX_PER_ROW:
                grid.lines.append((name, line))
        if grid.lines:
            made.append(grid)
            left -= len(rows) * len(grid.lines)
    return made


def _prediction(path: Path | None, image: str, row: str, task: str) -> Prediction | None:
    data = _jpeg(path) if path else None
    return (
        Prediction(f"{image}: {row} on {task}", f"Image {image} with the detections of {row}", data) if data else None
    )


def _jpeg(path: Path) -> str | None:
    """The picture as a data URI, reduced in size; None if it is no picture."""
    import PIL.Image

    try:
        with PIL.Image.open(path) as image:
            small = image.convert("RGB")
    except (OSError, PIL.UnidentifiedImageError, PIL.Image.DecompressionBombError):
        return None
    return data_uri(small)


def data_uri(image: Image) -> str:
    """An RGB image as JPEG in a data URI, reduced in size; `image` itself may be reduced, too."""
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
