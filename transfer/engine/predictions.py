"""A few test images with the trial's detections and the annotated objects drawn on them, by Detectron2's Visualizer."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.evaluation.evaluator import inference_context
from detectron2.structures import BoxMode, Instances
from detectron2.utils.visualizer import Visualizer
from PIL import Image, ImageOps
from torch import nn
from torch.nn.functional import interpolate

from ssl_transfer.files import atomic_write, remove_partial_files
from transfer.engine.detection_data import annotation_dict, to_detectron2
from transfer.engine.seeding import AUGMENT, numpy_seeded
from transfer.tasks.datasets import DatasetDict
from transfer.tasks.task import Dataset

FOLDER = "predictions"
THRESHOLD = 0.5
"""Detections of at least this score are drawn."""
LONGEST_SIDE = 640
CAPTION_HEIGHT = 26
COLOURS = ("#e6194b", "#0082c8", "#f58231", "#911eb4", "#008080", "#aa6e28", "#e6beff", "#ffe119", "#46f0f0", "#d2f53c")
ANNOTATED = "#ffffff"
FONT_POINTS = 10
"""At Detectron2's 100 dots per inch; a character is about 0.85 pixels wide a point."""


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
    if (folder / FOLDER).is_dir():
        remove_partial_files(folder / FOLDER, ["*"])
    with inference_context(model), torch.no_grad():
        for record in choose_images(dataset.records, cfg.TRANSFER.PREDICTIONS):
            with numpy_seeded(cfg.SEED, AUGMENT):  # the mapper draws a number even where it has no choice
                image_dict = mapper(to_detectron2(record, dataset.split.layout))
            (answer,) = model([image_dict])
            image = picture(record, answer["instances"].to("cpu"), dataset)
            name = re.sub(r"[^\w.-]", "_", str(record.image_id))
            written.append(folder / FOLDER / f"{name}.jpg")
            with atomic_write(written[-1]) as stream:
                image.save(stream, "JPEG", quality=90)
    return written


def choose_images(records: list[DatasetDict], count: int) -> list[DatasetDict]:
    """`count` images evenly spaced over those that have an object to find (over all, where none has)."""
    worth = [record for record in records if any(not (thing.crowd or thing.difficult) for thing in record.annotations)]
    worth = worth or records
    count = min(count, len(worth))
    return [worth[(2 * index + 1) * len(worth) // (2 * count)] for index in range(count)]


def picture(record: DatasetDict, found: Instances, dataset: Dataset) -> Image.Image:
    """The image with detections (solid boxes, filled masks), annotated objects (dashed boxes) and a caption below.

    Args:
        record: the image; its file is turned upright as its EXIF data says, as the detector saw it.
        found: detections in the image's pixels, on the CPU.
        dataset: the test split.
    """
    with Image.open(record.file) as file:
        image = ImageOps.exif_transpose(file).convert("RGB")
    scale = LONGEST_SIDE / max(image.size)
    width, height = (max(round(side * scale), 1) for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    view = Visualizer(np.pad(pixels, ((0, CAPTION_HEIGHT), (0, 0), (0, 0))))
    shown = _shown(found, len(record.annotations))
    _draw_detections(view, shown, dataset, scale)
    _draw_annotations(view, record, dataset, scale)  # last: filled masks do not hide the dashes
    caption = _caption(shown, len(record.annotations))
    points = min(FONT_POINTS, (width - 12) / (0.85 * len(caption)))
    view.draw_text(caption, (6, height + 4), font_size=points, color=ANNOTATED, horizontal_alignment="left")
    return Image.fromarray(view.output.get_image())


def _shown(found: Instances, objects: int) -> Instances:
    """Detections of at least `THRESHOLD` or, without any, the best, as many as annotated; the highest come last."""
    ranked = found[torch.argsort(found.scores, stable=True)]
    sure = int((ranked.scores >= THRESHOLD).sum())
    return ranked[len(ranked) - (sure or min(objects, len(ranked))) :]


def _draw_annotations(view: Visualizer, record: DatasetDict, dataset: Dataset, scale: float) -> None:
    entries = [annotation_dict(thing, dataset.split.layout) for thing in record.annotations]
    for thing, entry in zip(record.annotations, entries, strict=True):
        corners = BoxMode.convert(list(map(float, entry["bbox"])), entry["bbox_mode"], BoxMode.XYXY_ABS)
        box = [side * scale for side in corners]
        view.draw_box(box, alpha=1, edge_color="black")  # white dashes on black are visible on any image
        view.draw_box(box, alpha=1, edge_color=ANNOTATED, line_style="--")
        mark = " (difficult)" if thing.difficult else " (crowd)" if thing.crowd else ""
        _label(view, dataset.classes[thing.label] + mark, box, ANNOTATED, at_bottom=True)


def _draw_detections(view: Visualizer, shown: Instances, dataset: Dataset, scale: float) -> None:
    height, width = view.img.shape[0] - CAPTION_HEIGHT, view.img.shape[1]
    for index, label in enumerate(shown.pred_classes.tolist()):
        colour = COLOURS[label % len(COLOURS)]
        if shown.has("pred_masks"):
            mask = interpolate(shown.pred_masks[index].float()[None, None], (height, width))[0, 0].numpy() > 0
            mask = np.pad(mask, ((0, CAPTION_HEIGHT), (0, 0)))
            view.draw_binary_mask(mask, color=colour, alpha=0.45, area_threshold=0)
        x0, y0, x1, y1 = (shown.pred_boxes.tensor[index] * scale).tolist()
        box = [x0, y0, max(x0, x1), max(y0, y1)]
        view.draw_box(box, alpha=1, edge_color=colour)
        _label(view, f"{dataset.classes[label]} {shown.scores[index]:.2f}", box, colour)


def _label(view: Visualizer, text: str, box: list[float], colour: str, at_bottom: bool = False) -> None:
    """A text at the box's top or bottom left, within the image."""
    height, width = view.img.shape[0] - CAPTION_HEIGHT, view.img.shape[1]
    line = 2 * FONT_POINTS
    x = min(max(box[0], 0), max(width - 0.85 * FONT_POINTS * len(text), 0))
    y = min(max(box[3] - line if at_bottom else box[1], 0), max(height - line, 0))
    view.draw_text(text, (x + 2, y + 2), font_size=FONT_POINTS, color=colour, horizontal_alignment="left")


def _caption(shown: Instances, objects: int) -> str:
    below = len(shown) > 0 and float(shown.scores.max()) < THRESHOLD
    found = f"the best {len(shown)}, score below" if below else f"{len(shown)} detected, score at least"
    return f"solid: {found} {THRESHOLD:.2f}   dashed: {objects} annotated"
