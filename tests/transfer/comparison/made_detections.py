"""A test split and detections on it made to order, matched as a trial's are: no detector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ssl_transfer.formats.detections import Detections
from transfer.evaluation.matching import DetectedObjects, match, truth_digest
from transfer.tasks.datasets import Annotation, DatasetDict, Split
from transfer.tasks.task import Dataset

Box = tuple[float, float, float, float]
Object = tuple[int, int, Box]
"""Image, class, box x0 y0 x1 y1."""
Found = tuple[int, int, float, Box]
"""Image, class, score, box."""
CLASSES = ("cat", "dog")


def split(objects: Sequence[Object], layout: str = "coco", folder: Path = Path("images")) -> Dataset:
    """A split of 100 × 100 pixels; VOC's boxes are written as VOC counts them."""
    things: dict[int, list[Annotation]] = {}
    for image, label, (x0, y0, x1, y1) in objects:
        box = (x0, y0, x1 - x0, y1 - y0) if layout == "coco" else (x0 + 1, y0 + 1, x1, y1)
        things.setdefault(image, []).append(Annotation(label, box, area=(x1 - x0) * (y1 - y0)))
    records = [
        DatasetDict(str(folder / f"{index}.png"), index, 100, 100, tuple(things.get(index, ())))
        for index in range(max(things) + 1)
    ]
    return Dataset(Split("made", layout, folder), records, CLASSES, (1, 2))


def draw(dataset: Dataset) -> None:
    """Write the split's images, all grey."""
    for record in dataset.records:
        Path(record.file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (record.width, record.height), "grey").save(record.file)


def detections(dataset: Dataset, found: Sequence[Found], toy: bool = False) -> Detections:
    """What a trial writes for these detections."""
    rows = sorted(found, key=lambda one: one[0])
    image = np.array([row[0] for row in rows], dtype=np.int32)
    label = np.array([row[1] for row in rows], dtype=np.int16)
    score = np.array([row[2] for row in rows], dtype=np.float32)
    boxes = np.array([row[3] for row in rows], dtype=np.float32).reshape(-1, 4)
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)
    matches = match(dataset, DetectedObjects(image, label, score.astype(np.float64), boxes, sides))
    images = tuple(str(record.image_id) for record in dataset.records)
    metric = {"coco": "coco", "voc": "voc2007"}[dataset.split.layout]
    about = images, dataset.classes, metric, dataset.split.name, truth_digest(dataset), toy
    return Detections(*about, image, label, score, boxes, matches=matches)
