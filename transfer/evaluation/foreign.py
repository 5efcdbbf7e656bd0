"""Detections of other code bases: COCO's result JSON, such as Detectron2's `coco_instances_results.json`. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from ssl_transfer.errors import UserError, abbreviate
from ssl_transfer.files import open_input, read_json
from ssl_transfer.formats.detections import Detections
from transfer.evaluation.matching import DetectedObjects, describe_detections
from transfer.tasks.task import Dataset

SHAPE = "a list of {image_id, category_id, bbox: [x, y, width, height], score}"
SHOWN_CATEGORIES = 5


def is_result_list(file: Path) -> bool:
    """Whether a file may be COCO's result JSON: it begins with `[`.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open_input(file) as stream:
            return stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    except OSError as error:
        raise UserError(f"--import {file}: cannot be read ({error.strerror})") from error


def read_foreign(file: Path, dataset: Dataset, toy: bool = False) -> Detections:
    """Read detections, match them with a split's objects and resample its images.

    Args:
        file: the JSON. An image is named by its id; of VOC also as a number without leading zeros. A category is named
            by its id in the annotations; of VOC, which has none, by its place in the class order, from 1.
        dataset: the test split that they were made on. Its masks are measured where every detection has one.
        toy: the split is a toy.

    Raises:
        UserError: the file is no such JSON, or names an image or category that the split does not have.
    """
    entries = read_json(file)
    if not isinstance(entries, list):
        raise UserError(f"{file}: holds no list; it must be {SHAPE}")
    numbers = dataset.category_ids or range(1, len(dataset.classes) + 1)
    labels = {number: label for label, number in enumerate(numbers)}
    images, rows = _image_indices(dataset), []
    for index, entry in enumerate(entries):
        where = f"{file}, entry {index + 1}"
        image, category, box, score = _fields(entry, where)
        if image not in images:
            raise UserError(f"{where}: image {image!r} is not in {dataset.split.name}; was it made on another split?")
        if category not in labels:
            known = abbreviate([str(number) for number in numbers], SHOWN_CATEGORIES)
            raise UserError(f"{where}: category_id {category!r} is none of {dataset.split.name}: {known}")
        rows.append((images[image], labels[category], score, *box))
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    order = np.argsort(table[:, 0], kind="stable")  # within an image as in the file, which decides between equal scores
    table = table[order]
    corners = table[:, 3:].copy()
    corners[:, 2:] += corners[:, :2]
    found = DetectedObjects(
        image=table[:, 0].astype(np.int32),
        label=table[:, 1].astype(np.int16),
        score=table[:, 2],
        corners=corners.astype(np.float32),
        boxes=table[:, 3:],
        masks=list(_masks(file, dataset, entries, order.tolist())) if _has_masks(dataset, entries) else None,
    )
    return describe_detections(dataset, found, toy=toy)


def _image_indices(dataset: Dataset) -> dict[str, int]:
    """Index of each image by its id as text, and without the leading zeros of VOC's where no other has that id."""
    indices = {str(record.image_id): index for index, record in enumerate(dataset.records)}
    for name, index in list(indices.items()):
        if name.isdecimal():
            indices.setdefault(str(int(name)), index)
    return indices


def _fields(entry: Any, where: str) -> tuple[str, int, Sequence[float], float]:
    """Image, category, box and score of one entry."""
    try:
        image, category, box, score = (entry[key] for key in ("image_id", "category_id", "bbox", "score"))
        values = [float(value) for value in (*box, score)]
        usual = len(values) == 5 and all(map(math.isfinite, values)) and isinstance(category, int)
    except (LookupError, TypeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, LookupError) else error
        raise UserError(f"{where}: {what}; the file must be {SHAPE}") from error
    if not usual or not isinstance(image, (int, str)):
        raise UserError(f"{where}: a value is not finite or of another type; the file must be {SHAPE}")
    return str(image), category, values[:4], values[4]


def _has_masks(dataset: Dataset, entries: Sequence[Mapping[str, Any]]) -> bool:
    objects = (one for record in dataset.records for one in record.annotations)
    return (
        dataset.split.layout == "coco"
        and all("segmentation" in entry for entry in entries)
        and all(one.segmentation is not None for one in objects)
    )


def _masks(file: Path, dataset: Dataset, entries: Sequence[Mapping[str, Any]], order: Sequence[int]) -> Iterator[bytes]:
    """Compressed run lengths of the entries in this order."""
    images = _image_indices(dataset)
    for index in order:
        record = dataset.records[images[str(entries[index]["image_id"])]]
        mask, size = entries[index]["segmentation"], [record.height, record.width]
        try:
            if isinstance(mask, dict) and list(mask["size"]) != size:
                raise ValueError(f"its mask has the size {mask['size']}, the image {size}")
            if isinstance(mask, dict) and isinstance(mask["counts"], str):
                yield mask["counts"].encode()
            else:  # run lengths as numbers, or polygons
                made = rle.frPyObjects(mask, *size)
                yield (made if isinstance(made, dict) else rle.merge(made))["counts"]
        except Exception as error:  # pycocotools raises a bare Exception, too
            raise UserError(f"{file}, entry {index + 1}: its segmentation cannot be read ({error})") from error
