"""Read a split in COCO's layout; errors name file and object.

The result equals that of Detectron2's `load_coco_json`: images in the order of their ids, annotations in the order of
the file, category ids made contiguous in ascending order. Polygons of less than three points are dropped, and objects
without another polygon with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError, nearest
from common.files import read_json
from transfer.tasks.datasets import Annotation, DatasetDict, Split
from transfer.tasks.reading import Reading

SLACK = 5.0
"""Pixels by which a box may exceed its image: polygons overshoot the edge, and Detectron2 clips them."""


@dataclass(frozen=True)
class Categories:
    """The categories of a COCO file.

    Attributes:
        names: in ascending order of their ids, which is the order of the task's labels.
        labels: category id → label.
    """

    names: tuple[str, ...]
    labels: Mapping[int, int]


def read_coco(
    split: Split, classes: Sequence[str], reading: Reading | None = None
) -> tuple[list[DatasetDict], Categories]:
    """Read every annotation of a split.

    Args:
        split: a split of layout `coco`.
        classes: the task's class names; the file must hold exactly these categories.
        reading: collects faults (images and objects with faults are left out) and adjustments; by default the first
            fault is raised.

    Raises:
        UserError: the file or an image is missing or broken, the categories differ, or an object is not valid.
    """
    assert split.annotations is not None
    reading = reading or Reading(split.strict)
    content = read_json(split.annotations)
    images, annotations, listed = (
        _list_of(content, key, split.annotations) for key in ("images", "annotations", "categories")
    )
    categories = _categories(listed, classes, split.annotations)
    objects = _by_image(images, annotations, split.annotations)
    existing = _file_names(split.folder)
    records = []
    for image in sorted(images, key=lambda image: image["id"]):
        path = split.folder / image["file_name"]
        if image["file_name"] not in existing and not path.is_file():
            lists = f"{path} does not exist, but {split.annotations} lists it"
            reading.add_fault(f"{lists}; is the set complete?")
            continue
        found = tuple(_annotations(objects[image["id"]], image, categories, split.annotations, reading))
        records.append(DatasetDict(str(path), image["id"], image["width"], image["height"], found))
    return records, categories


def _annotations(
    entries: list[dict[str, Any]], image: dict[str, Any], categories: Categories, file: Path, reading: Reading
) -> Iterator[Annotation]:
    for entry in entries:
        try:
            annotation = _annotation(entry, image, categories, file)
        except UserError as error:
            reading.add_fault(error)
            continue
        if annotation is not None:
            yield annotation


def _list_of(content: Any, key: str, file: Path) -> list[dict[str, Any]]:
    value = content.get(key) if isinstance(content, dict) else None
    if not isinstance(value, list) or not value:
        raise UserError(
            f"{file}: has no list {key!r}, or an empty one; "
            "an instances file of COCO has images, annotations and categories"
        )
    return value


def _file_names(folder: Path) -> set[str]:
    try:
        return {file.name for file in folder.iterdir()}
    except OSError as error:
        raise UserError(
            f"cannot list {folder}: {error.strerror}; point TRANSFER.DATA_ROOT at the folder that holds it"
        ) from error


def _categories(listed: list[dict[str, Any]], classes: Sequence[str], file: Path) -> Categories:
    for index, entry in enumerate(listed):
        _require_keys(entry, {"id": int, "name": str}, f"{file}, categories[{index}]")
    ordered = sorted(listed, key=lambda entry: entry["id"])
    names = tuple(entry["name"] for entry in ordered)
    for name in names:
        if name not in classes:
            raise UserError(
                f"{file}: category {name!r} is not one of the task's classes; "
                f"{nearest(name, classes)} (TRANSFER.CLASSES)"
            )
    for name in classes:
        if name not in names:
            raise UserError(
                f"{file}: has no category {name!r}, which the task has; {nearest(name, names)} (TRANSFER.CLASSES)"
            )
    return Categories(names, {entry["id"]: label for label, entry in enumerate(ordered)})


def _by_image(
    images: list[dict[str, Any]], annotations: list[dict[str, Any]], file: Path
) -> dict[int, list[dict[str, Any]]]:
    objects: dict[int, list[dict[str, Any]]] = {}
    for index, image in enumerate(images):
        _require_keys(image, {"id": int, "file_name": str, "width": int, "height": int}, f"{file}, images[{index}]")
        if image["id"] in objects:
            raise UserError(f"{file}, images[{index}]: the id {image['id']} is used twice")
        objects[image["id"]] = []
    seen: set[int] = set()
    for index, entry in enumerate(annotations):
        where = f"{file}, annotations[{index}]"
        _require_keys(entry, {"id": int, "image_id": int, "category_id": int, "bbox": list}, where)
        _require_metric_keys(entry, where)
        if entry["image_id"] not in objects:
            raise UserError(f"{where} (id {entry['id']}): no image has the id {entry['image_id']}")
        if entry["id"] in seen:
            raise UserError(f"{where}: the id {entry['id']} is used twice")
        seen.add(entry["id"])
        objects[entry["image_id"]].append(entry)
    return objects


def _require_keys(entry: Any, keys: Mapping[str, type], where: str) -> None:
    for key, kind in keys.items():
        if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
            found = entry.get(key) if isinstance(entry, dict) else entry
            raise UserError(f"{where}: {key} must be of type {kind.__name__}, not {found!r}")


def _require_metric_keys(entry: dict[str, Any], where: str) -> None:
    """Check the keys that COCO's metric reads; without them pycocotools raises a KeyError."""
    area, crowd = entry.get("area"), entry.get("iscrowd")
    if not isinstance(area, (int, float)) or isinstance(area, bool) or area < 0:
        found = "it has none" if area is None else f"not {area!r}"
        raise UserError(f"{where}: area must be the object's pixels, 0 or more, {found}; COCO's metric needs it")
    if crowd not in (0, 1):
        found = "it has none" if crowd is None else f"not {crowd!r}"
        raise UserError(f"{where}: iscrowd must be 0 or 1, {found}; COCO's metric needs it (0 for a single object)")


def _annotation(entry: dict[str, Any], image: dict[str, Any], categories: Categories, file: Path) -> Annotation | None:
    """Convert one annotation; None where all its polygons have less than three points."""
    where = f"{file}, annotation {entry['id']}"
    if entry["category_id"] not in categories.labels:
        raise UserError(f"{where}: no category has the id {entry['category_id']}")
    box = _box(entry["bbox"], image, where)
    segmentation = entry.get("segmentation")
    if segmentation:
        segmentation = _segmentation(segmentation, where)
        if not segmentation:
            return None
    label = categories.labels[entry["category_id"]]
    return Annotation(label, box, crowd=entry["iscrowd"] == 1, segmentation=segmentation or None)


def _box(box: list[float], image: dict[str, Any], where: str) -> tuple[float, float, float, float]:
    if len(box) != 4 or not all(isinstance(number, (int, float)) for number in box):
        raise UserError(f"{where}: bbox must be four numbers (x, y, width, height), not {box!r}")
    x, y, width, height = box
    inside = (
        x >= -SLACK and y >= -SLACK and x + width <= image["width"] + SLACK and y + height <= image["height"] + SLACK
    )
    if not inside or width < 0 or height < 0:
        size = f"{image['width']} × {image['height']}"
        raise UserError(
            f"{where}: bbox {box} is outside its image {image['file_name']} ({size}) or has a negative side; "
            "correct or remove it"
        )
    return x, y, width, height


def _segmentation(value: Any, where: str) -> Any:
    """Polygons of three points or more, or a compressed RLE."""
    if isinstance(value, dict):
        counts, size = value.get("counts"), value.get("size")
        if counts is None or not isinstance(size, list):
            raise UserError(f"{where}: an RLE segmentation needs counts and size")
        if isinstance(counts, list):
            import pycocotools.mask

            return pycocotools.mask.frPyObjects(value, *size)
        return value
    if not isinstance(value, list) or not all(isinstance(polygon, list) for polygon in value):
        raise UserError(f"{where}: segmentation must be a list of polygons or an RLE")
    return [polygon for polygon in value if len(polygon) % 2 == 0 and len(polygon) >= 6]
