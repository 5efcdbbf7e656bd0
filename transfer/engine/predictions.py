"""A few test images with the trial's detections and the annotated objects drawn on them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.evaluation.evaluator import inference_context
from detectron2.structures import BoxMode, Instances
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import nn

from common.files import atomic_write
from transfer.engine.detection_data import to_detectron2
from transfer.engine.seeding import AUGMENT, numpy_seeded
from transfer.tasks.records import Record
from transfer.tasks.task import Dataset

FOLDER = "predictions"
THRESHOLD = 0.5
"""Detections below this score are not drawn."""
LONGEST_SIDE = 640
COLOURS = ("#e6194b", "#0082c8", "#f58231", "#911eb4", "#008080", "#aa6e28", "#e6beff", "#ffe119", "#46f0f0", "#d2f53c")
TRUTH = "#ffffff"


@dataclass(frozen=True)
class Drawn:
    """One box to draw.

    Attributes:
        box: x0, y0, x1, y1 in the picture's pixels.
        text: what stands at it.
        colour: of the box and behind the text.
        detected: a solid line, the text at the box's top; else a dashed one, the text at its bottom.
    """

    box: tuple[float, float, float, float]
    text: str
    colour: str
    detected: bool


def draw_predictions(model: nn.Module, dataset: Dataset, cfg: CfgNode, folder: Path) -> list[Path]:
    """Detect and draw on TRANSFER.PREDICTIONS test images; the detector and all randomness stay as they were.

    Args:
        model: the trained detector; its inference draws no random number.
        dataset: the test split.
        cfg: the resolved config.
        folder: the trial's folder; the pictures go to `predictions/<image id>.jpg` there.

    Returns:
        The files written.
    """
    mapper, written = DatasetMapper(cfg, is_train=False), []
    with inference_context(model), torch.no_grad():
        for record in chosen(dataset.records, cfg.TRANSFER.PREDICTIONS):
            with numpy_seeded(cfg.SEED, AUGMENT):  # the mapper draws a number even where it has no choice
                image_dict = mapper(to_detectron2(record, dataset.split.layout))
            (answer,) = model([image_dict])
            image = picture(record, answer["instances"].to("cpu"), dataset)
            name = re.sub(r"[^\w.-]", "_", str(record.image_id))
            written.append(folder / FOLDER / f"{name}.jpg")
            with atomic_write(written[-1]) as stream:
                image.save(stream, "JPEG", quality=90)
    return written


def chosen(records: list[Record], count: int) -> list[Record]:
    """`count` images evenly spaced over those that have an object to find (over all, where none has)."""
    worth = [record for record in records if any(not (thing.crowd or thing.difficult) for thing in record.things)]
    worth = worth or records
    count = min(count, len(worth))
    return [worth[(2 * index + 1) * len(worth) // (2 * count)] for index in range(count)]


def picture(record: Record, found: Instances, dataset: Dataset) -> Image.Image:
    """The image with masks filled, detections' boxes solid, objects' dashed, and a line below that says so.

    Args:
        record: the image; its file is turned upright as its EXIF data says, as the detector saw it.
        found: detections in the image's pixels, on the CPU.
        dataset: the test split.
    """
    with Image.open(record.file) as file:
        image = ImageOps.exif_transpose(file).convert("RGB")
    scale = LONGEST_SIDE / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    shown = found[found.scores >= THRESHOLD]
    shown = shown[torch.argsort(shown.scores, stable=True)]  # the surest on top
    colours = [COLOURS[label % len(COLOURS)] for label in shown.pred_classes.tolist()]
    if shown.has("pred_masks"):
        image = _filled(image, shown.pred_masks.numpy(), colours)
    image = image.resize(size, Image.Resampling.LANCZOS)
    boxes = [*_truth(record, dataset, scale), *_detections(shown, dataset.classes, colours, scale)]
    _draw(image, boxes)
    return _captioned(image, _caption(found, len(shown), len(record.things)))


def _detections(shown: Instances, classes: tuple[str, ...], colours: list[str], scale: float) -> list[Drawn]:
    rows = zip(
        (shown.pred_boxes.tensor * scale).tolist(), shown.scores.tolist(), shown.pred_classes.tolist(), colours,
        strict=True,
    )  # fmt: skip
    return [Drawn(tuple(box), f"{classes[label]} {score:.2f}", colour, True) for box, score, label, colour in rows]


def _truth(record: Record, dataset: Dataset, scale: float) -> list[Drawn]:
    drawn = []
    for thing, entry in zip(record.things, to_detectron2(record, dataset.split.layout)["annotations"], strict=True):
        box = BoxMode.convert(list(map(float, entry["bbox"])), entry["bbox_mode"], BoxMode.XYXY_ABS)
        mark = " (difficult)" if thing.difficult else " (crowd)" if thing.crowd else ""
        corners = tuple(side * scale for side in box)
        drawn.append(Drawn(corners, dataset.classes[thing.label] + mark, TRUTH, False))
    return drawn


def _filled(image: Image.Image, masks: NDArray[np.bool_], colours: list[str]) -> Image.Image:
    """Masks in their class's colour, half transparent."""
    for mask, colour in zip(masks, colours, strict=True):
        image.paste(Image.new("RGB", image.size, colour), mask=Image.fromarray(mask.astype(np.uint8) * 115))
    return image


def _caption(found: Instances, shown: int, objects: int) -> str:
    best = f"; the best has {float(found.scores.max()):.2f}" if len(found) and not shown else ""
    return f"solid: {shown} detected, score at least {THRESHOLD:.2f}{best}   dashed: {objects} annotated"


def _draw(image: Image.Image, boxes: list[Drawn]) -> None:
    draw, font = ImageDraw.Draw(image), _font(15)
    for one in boxes:
        if one.detected:
            draw.rectangle(_ordered(one.box), outline=one.colour, width=3)
        else:
            _dashed(draw, one.box)
    for one in boxes:  # all texts above all lines
        _label(draw, image.size, one, font)


def _ordered(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box
    return x0, y0, max(x0, x1), max(y0, y1)


def _dashed(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], dash: int = 8) -> None:
    """White dashes on black, to be seen on any image."""
    x0, y0, x1, y1 = _ordered(box)
    for start, end in (((x0, y0), (x1, y0)), ((x0, y1), (x1, y1)), ((x0, y0), (x0, y1)), ((x1, y0), (x1, y1))):
        draw.line((start, end), fill="black", width=2)
        length = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1.0)
        for at in np.arange(0, length, 2 * dash):
            a, b = at / length, min(at + dash, length) / length
            points = [(start[0] + part * (end[0] - start[0]), start[1] + part * (end[1] - start[1])) for part in (a, b)]
            draw.line(points, fill=TRUTH, width=2)


def _label(draw: ImageDraw.ImageDraw, size: tuple[int, int], one: Drawn, font: Any) -> None:
    x0, y0, _, y1 = one.box
    left, top, right, bottom = draw.textbbox((0, 0), one.text, font=font)
    width, height = right - left + 6, bottom - top + 4
    x = min(max(x0, 0), max(size[0] - width, 0))
    y = min(max(y0 if one.detected else y1 - height, 0), max(size[1] - height, 0))
    draw.rectangle((x, y, x + width, y + height), fill=one.colour)
    bright = sum(weight * int(one.colour[at : at + 2], 16) for weight, at in ((0.3, 1), (0.59, 3), (0.11, 5))) > 140
    draw.text((x + 3 - left, y + 2 - top), one.text, fill="black" if bright else "white", font=font)


def _captioned(image: Image.Image, text: str) -> Image.Image:
    """The image with a strip below; the text shrinks where the image is narrow."""
    points = 15
    while points > 7 and _font(points).getlength(text) > image.width - 12:
        points -= 1
    canvas = Image.new("RGB", (image.width, image.height + 26), "black")
    canvas.paste(image)
    ImageDraw.Draw(canvas).text((6, image.height + 4), text, fill="white", font=_font(points))
    return canvas


def _font(points: int) -> Any:
    return ImageFont.load_default(points)
