"""One annotated image and one object on it, as every reader yields them; plain data without torch or Detectron2."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from common.errors import UserError


@dataclass(frozen=True, slots=True)
class Thing:
    """One annotated object.

    Attributes:
        label: index into the task's class list.
        box: VOC: x0, y0, x1, y1 as the XML has them (1-based, inclusive integers). COCO: x, y, width, height in pixels.
        difficult: VOC's flag: trained on, ignored in evaluation.
        crowd: COCO's flag: many objects under one mask.
        segmentation: COCO: polygons `[[x, y, …], …]` or a compressed RLE; None where there is none.
    """

    label: int
    box: tuple[float, float, float, float]
    difficult: bool = False
    crowd: bool = False
    segmentation: Any = None


@dataclass(frozen=True, slots=True)
class Record:
    """One annotated image.

    Attributes:
        file: path of the image.
        image_id: VOC: the file's stem (str). COCO: the image's id (int).
        width, height: pixels, as the annotation says.
        things: its objects, in the annotation's order.
    """

    file: str
    image_id: str | int
    width: int
    height: int
    things: tuple[Thing, ...] = field(default_factory=tuple)


def told(error: UserError, faults: list[str] | None) -> None:
    """Note a fault where all are collected, else raise it."""
    if faults is None:
        raise error
    faults.append(str(error))
