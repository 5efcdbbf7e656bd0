"""The test images on which two trials differ most, and both trials' detections drawn on them with Pillow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ssl_transfer.errors import UserError
from ssl_transfer.formats.detections import Detections
from transfer.comparison.tide import pixel_box
from transfer.tasks.task import Dataset

SCORE = 0.5
"""Detections below this score are neither counted nor drawn."""
LONGEST_SIDE, FONT_SIZE, DASH = 640, 14, 6
TRUE, FALSE, IGNORED, ANNOTATED = "#3ddc84", "#ff5d5d", "#b9b9c2", "#ffffff"


@dataclass(frozen=True)
class DifferingImage:
    """An image (its index and id), and each trial's `image_quality` on it."""

    index: int
    name: str
    ours: int
    theirs: int


def image_quality(found: Detections) -> NDArray[np.int64]:
    """True minus false positives of every image, at IoU 0.5 and with a score of at least SCORE; shape (images,)."""
    matches = found.matches["bbox"]
    hit, ignored = matches.hit[0] & 1 > 0, matches.ignored[0] & 1 > 0
    points = np.where(ignored | (matches.score < SCORE), 0, np.where(hit, 1, -1))
    return np.bincount(matches.image, points, len(found.images)).astype(np.int64)


def choose_images(ours: Detections, theirs: Detections, count: int) -> list[DifferingImage]:
    """The `count` images whose quality differs most, of equal ones those with the smaller id; none that are equal."""
    first, second = image_quality(ours), image_quality(theirs)
    away = np.abs(first - second)
    ranked = sorted(np.flatnonzero(away).tolist(), key=lambda index: (-away[index], ours.images[index]))
    return [DifferingImage(i, ours.images[i], int(first[i]), int(second[i])) for i in ranked[:count]]


def draw_detections(dataset: Dataset, index: int, found: Detections) -> Image.Image:
    """An image of a split with detections (solid: green true, red false, grey ignored) and annotated objects (dashed).

    Its file is turned upright as its EXIF data says, as the detector saw it.

    Raises:
        UserError: the file cannot be read.
    """
    record, matches = dataset.records[index], found.matches["bbox"]
    try:
        with Image.open(record.file) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{record.file} cannot be read ({error}); find such files: python tools/data.py check"
        ) from error
    scale = LONGEST_SIDE / max(image.size)
    image = image.resize([max(round(side * scale), 1) for side in image.size], Image.Resampling.LANCZOS)
    rows = np.flatnonzero((matches.image == index) & (matches.score >= SCORE))
    for row in rows[np.argsort(matches.score[rows], kind="stable")].tolist():  # the highest score on top
        colour = IGNORED if matches.ignored[0, row] & 1 else TRUE if matches.hit[0, row] & 1 else FALSE
        x0, y0, x1, y1 = (found.boxes[matches.detection[row]] * scale).tolist()
        ImageDraw.Draw(image).rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=colour, width=3)
        _label(image, f"{found.classes[matches.label[row]]} {matches.score[row]:.2f}", x0, y0, colour)
    outlines = Image.new("L", image.size)
    for thing in record.annotations:
        x, y, width, height = (side * scale for side in pixel_box(thing, dataset.split.layout))
        ImageDraw.Draw(outlines).rectangle((x, y, x + width, y + height), outline=255, width=2)
        mark = " (not counted)" if thing.difficult or thing.crowd else ""
        _label(image, found.classes[thing.label] + mark, x, y + height - FONT_SIZE - 6, ANNOTATED)
    stripes = np.add.outer(np.arange(image.height), np.arange(image.width)) // DASH % 2 * 255
    image.paste(Image.fromarray(stripes.astype(np.uint8)), mask=outlines)  # white on black: visible on any image
    return image


def _label(image: Image.Image, text: str, x: float, y: float, colour: str) -> None:
    """A text on black at (x, y), moved into the image."""
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(FONT_SIZE)
    width, height = draw.textlength(text, font) + 6, FONT_SIZE + 6
    x, y = min(max(x, 0), max(image.width - width, 0)), min(max(y, 0), max(image.height - height, 0))
    draw.rectangle((x, y, x + width, y + height), fill="#000000")
    draw.text((x + 3, y + 1), text, fill=colour, font=font)
