"""Read a split in PASCAL VOC's layout; errors name file and object."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError, nearest
from transfer.tasks.datasets import Annotation, DatasetDict, Split
from transfer.tasks.reading import Reading

SLACK = 1
"""Pixels by which a box may exceed its image: annotations that count from 0 instead of 1 are common and harmless."""


def read_voc(split: Split, classes: Sequence[str], reading: Reading | None = None) -> list[DatasetDict]:
    """Read every annotation of a split, in the order of its image list.

    Args:
        split: a split of layout `voc`.
        classes: the task's class names; an object of any other name is an error.
        reading: collects faults (images with faults are left out) and adjustments; by default the first
            fault is raised.

    Returns:
        One record per image; boxes as in the XML.

    Raises:
        UserError: a file is missing or broken, or an object has no known class or no valid box.
    """
    reading = reading or Reading(split.strict)
    labels = {name: index for index, name in enumerate(classes)}
    images = split.folder / "JPEGImages"
    existing = {file.name for file in _entries(images)}
    records = []
    for image_id in image_list(split):
        name = f"{image_id}.{split.extension}"
        try:
            if name not in existing:
                listed = f"{images / name} does not exist, but {_list_file(split)} lists it"
                raise UserError(f"{listed}; is the set complete?")
            annotation = split.folder / "Annotations" / f"{image_id}.xml"
            records.append(_record(annotation, str(images / name), image_id, labels))
        except UserError as error:
            reading.add_fault(error)
    return records


def image_list(split: Split) -> list[str]:
    """List the ids of a split's images.

    Raises:
        UserError: the list is missing, empty or names an image twice.
    """
    file = _list_file(split)
    try:
        # Lists of a single class have a second column; the id is the first word either way.
        ids = [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise UserError(f"{file} does not exist; it should list the images of {split.name}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}") from error
    if not ids:
        raise UserError(f"{file} lists no image")
    if len(set(ids)) < len(ids):
        twice = next(name for index, name in enumerate(ids) if name in ids[:index])
        raise UserError(f"{file} lists {twice} twice; remove one of the lines")
    return ids


def _list_file(split: Split) -> Path:
    return split.folder / "ImageSets" / "Main" / f"{split.image_set}.txt"


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise UserError(
            f"cannot list {folder}: {error.strerror}; point TRANSFER.DATA_ROOT at the folder that holds it"
        ) from error


def _record(annotation: Path, image: str, image_id: str, labels: dict[str, int]) -> DatasetDict:
    tree = _parse(annotation)
    width, height = (_number(tree, f"size/{side}", annotation, "the image") for side in ("width", "height"))
    annotations = []
    for index, element in enumerate(tree.findall("object"), start=1):
        found = _annotation(element, annotation, index, labels)
        x0, y0, x1, y1 = found.box
        if not (1 - SLACK <= x0 <= x1 <= width + SLACK and 1 - SLACK <= y0 <= y1 <= height + SLACK):
            box = f"box {x0:g} {y0:g} {x1:g} {y1:g}"
            raise UserError(
                f"{annotation}, object {index}: {box} is empty or outside the image ({width:g} × {height:g}); "
                "correct or remove it"
            )
        annotations.append(found)
    return DatasetDict(image, image_id, int(width), int(height), tuple(annotations))


def _parse(annotation: Path) -> ET.Element:
    try:
        return ET.parse(annotation).getroot()
    except FileNotFoundError as error:
        raise UserError(f"{annotation} does not exist, but its image is listed; is the set complete?") from error
    except ET.ParseError as error:
        raise UserError(f"{annotation}, line {error.position[0]}: not XML ({error}); is the file truncated?") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {annotation}: {error}") from error


def _annotation(element: ET.Element, annotation: Path, index: int, labels: dict[str, int]) -> Annotation:
    what = f"object {index}"
    name = (element.findtext("name") or "").strip()
    if name not in labels:
        raise UserError(
            f"{annotation}, {what}: class {name!r} is not one of the task's; {nearest(name, labels)} (TRANSFER.CLASSES)"
        )
    x0, y0, x1, y1 = (_number(element, f"bndbox/{side}", annotation, what) for side in ("xmin", "ymin", "xmax", "ymax"))
    difficult = (element.findtext("difficult") or "0").strip() == "1"
    return Annotation(labels[name], (x0, y0, x1, y1), difficult)


def _number(element: ET.Element, path: str, annotation: Path, what: str) -> float:
    text = element.findtext(path)
    try:
        return float(text or "")
    except ValueError as error:
        raise UserError(f"{annotation}, {what}: {path} is {text!r}, not a number") from error
