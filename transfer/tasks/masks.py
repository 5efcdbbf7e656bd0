"""Masks of annotations, looked at before anything that is written in C reads them: polygons and run lengths (RLE)."""

from __future__ import annotations

from typing import Any

from ssl_transfer.errors import UserError
from transfer.tasks.reading import Reading

Box = tuple[float, float, float, float]
POINTS = 3
LONGEST_OUTLINE = 5e6
"""Pixels: to draw a polygon takes memory for each pixel of its outline, about 100 bytes."""
LONGEST_COUNT = 7
"""Characters of one run length in a compressed RLE, 5 bits each: more than any image has pixels."""


def check_segmentation(value: Any, size: tuple[int, int], box: Box, reading: Reading) -> Any:
    """Check a `segmentation` of an annotation file.

    Args:
        value: polygons `[[x, y, …], …]` in pixels, or an RLE `{"size", "counts"}`.
        size: height and width of the image.
        box: the object's, x, y, width, height.
        reading: counts the polygons of less than three points, which are left out.

    Returns:
        The polygons, perhaps none, or a compressed RLE; None where there is no mask. Polygons of less than three points
        are returned where the split is read strictly: training leaves them out, the metric reads them.

    Raises:
        UserError: it is neither, or a number in it is none, or is impossible in the image.
    """
    if not value:
        return None
    if isinstance(value, dict):
        return _check_rle(value, size)
    if not isinstance(value, list) or not all(isinstance(polygon, list) for polygon in value):
        raise UserError("segmentation must be a list of polygons or an RLE")
    for polygon in value:
        _check_polygon(polygon, size)
    if min(box[2:]) > 2 and all(min(polygon, default=0) >= 0 and max(polygon, default=0) <= 1 for polygon in value):
        raise UserError("segmentation is in fractions of the image, as it seems; multiply by its width and height")
    whole = whole_polygons(value)
    if len(whole) < len(value) and not reading.strict:
        reading.adjust("polygons of less than three points left out", "")
        return whole
    return value


def whole_polygons(polygons: list[list[float]]) -> list[list[float]]:
    """Those of three points or more: all that training can use."""
    whole = [polygon for polygon in polygons if len(polygon) % 2 == 0 and len(polygon) >= 2 * POINTS]
    return polygons if len(whole) == len(polygons) else whole  # a set holds a million of them


def _check_polygon(polygon: list[Any], size: tuple[int, int]) -> None:
    """A polygon may leave its image by as much as the image is long; it is cut off at the edge."""
    reach = 2 * max(size)
    try:
        low, high = min(polygon, default=0), max(polygon, default=0)
        inside = sum(polygon) == sum(polygon) and -reach <= low <= high <= reach
    except (TypeError, OverflowError):
        inside = False
    if not inside:
        wrong = next((item for item in polygon if not (type(item) in (int, float) and -reach <= item <= reach)), None)
        raise UserError(f"segmentation: {wrong!r:.60} is no coordinate in its image of {size[1]} × {size[0]} pixels")
    if len(polygon) * (high - low) > LONGEST_OUTLINE:
        steps = zip(polygon, polygon[2:], strict=False)
        if sum(abs(to - start) for start, to in steps) > LONGEST_OUTLINE:
            raise UserError(f"segmentation: a polygon of {len(polygon) // 2} points is no outline; simplify it")


def _check_rle(value: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    counts, given = value.get("counts"), value.get("size")
    if counts is None or not isinstance(given, list):
        raise UserError("an RLE segmentation needs counts and size")
    if given != list(size):
        raise UserError(f"segmentation: its RLE has the size {given!r:.60}, its image {list(size)} (height, width)")
    try:
        runs = _decoded(counts) if isinstance(counts, str) else counts
        right = all(type(run) is int and run >= 0 for run in runs) and sum(runs) == size[0] * size[1]
    except (TypeError, ValueError):
        right = False
    if not right:
        raise UserError(f"segmentation: the counts of its RLE are not the run lengths of {size[1]} × {size[0]} pixels")
    if isinstance(counts, str):
        return {"size": list(size), "counts": counts.encode()}
    import pycocotools.mask

    compressed: dict[str, Any] = pycocotools.mask.frPyObjects({"size": list(size), "counts": counts}, *size)
    return compressed


def _decoded(counts: str) -> list[int]:
    """Run lengths of a compressed RLE [cocoapi: ssl_transfer/maskApi.c, rleFrString].

    Raises:
        ValueError: it is cut off, or has a character that none can have.
    """
    import numpy as np

    digits = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    last = digits & 32 == 0
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or not last[-1]:
        raise ValueError("not the characters of an RLE")
    first = np.flatnonzero(np.concatenate(([True], last[:-1])))
    length = np.diff([*first, len(digits)])
    if length.max() > LONGEST_COUNT:
        raise ValueError("a run is too long")
    runs = np.add.reduceat((digits & 31) << 5 * (np.arange(len(digits)) - np.repeat(first, length)), first)
    runs -= ((digits[last] & 16) > 0).astype(np.int64) << 5 * length
    for start in (1, 2):  # from the fourth on, a run is the difference from the one before the last
        runs[start::2] = np.cumsum(runs[start::2])
    return [int(run) for run in runs]


def mask_area(segmentation: Any, size: tuple[int, int]) -> float:
    """Pixels of a mask that `check_segmentation` returned."""
    import pycocotools.mask as rle

    if isinstance(segmentation, list):
        segmentation = rle.merge(rle.frPyObjects(segmentation, *size))
    return float(rle.area(segmentation))
