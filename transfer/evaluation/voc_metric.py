"""PASCAL VOC's average precision as Detectron2 defines it, without a file or a loop over detections.

Definition [detectron2: evaluation/pascal_voc_evaluation.py]: boxes count pixels from 1 and include the last; scores are
rounded to 3 decimals and boxes to 1; a detection is matched to the object it overlaps most (the first of several) for
every threshold; the detection with the highest score is a true positive, any later one of that object a false positive;
detections of a difficult object are ignored. AP is that of 2007 (mean of 11 precisions) or of 2012 (area under the
curve).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssl_transfer.formats.detections import THRESHOLDS
from transfer.tasks.task import Dataset

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Objects:
    """The annotated objects of one class.

    Attributes:
        image: (M,) int, index of each object's image, ascending.
        boxes: (M, 4) xmin, ymin, xmax, ymax in pixels, counted from 1.
        difficult: (M,) bool.
    """

    image: NDArray[np.int64]
    boxes: Floats
    difficult: NDArray[np.bool_]


@dataclass(frozen=True)
class ClassDetections:
    """The detections of one class, in the detector's order.

    Attributes:
        image: (N,) int, index of each detection's image.
        scores: (N,) rounded to 3 decimals.
        boxes: (N, 4) counted from 1, rounded to 1 decimal.
    """

    image: NDArray[np.int64]
    scores: Floats
    boxes: Floats


def rounded(values: NDArray[np.float32], decimals: int) -> Floats:
    """Equal to `float(f"{value:.{decimals}f}")`: float64 represents a float32 times 10 or 1000 exactly."""
    scale = 10.0**decimals
    return np.asarray(np.rint(values.astype(np.float64) * scale) / scale)


def average_precisions(
    objects: Objects, found: ClassDetections, points_11: bool, thresholds: Sequence[float] = THRESHOLDS
) -> Floats:
    """AP of one class at each threshold.

    Args:
        objects: the annotated objects.
        found: the detections.
        points_11: the 2007 metric; else that of 2012.
        thresholds: IoUs; an overlap must be above, not at, the threshold.

    Returns:
        (T,) in 0…1.
    """
    # The same sort as in Detectron2, on the same numbers in the same order: ties are broken in the same way.
    order = np.argsort(-found.scores)
    overlap, match = best_match(objects, found.image[order], found.boxes[order])
    positives = int((~objects.difficult).sum())
    return np.array(
        [_average_precision(overlap > t, match, objects.difficult, positives, points_11) for t in thresholds]
    )


def best_match(objects: Objects, image: NDArray[np.int64], boxes: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Each detection's largest IoU with an object of its image, and that object's index; −inf and 0 without one."""
    first = np.searchsorted(objects.image, image, side="left")
    count = np.searchsorted(objects.image, image, side="right") - first
    overlap = np.full(len(image), -np.inf)
    match = np.zeros(len(image), dtype=np.int64)
    # One step for each object of the fullest image: the k-th object of every detection's image at once.
    for k in range(int(count.max(initial=0))):
        rows = np.flatnonzero(count > k)
        candidate = first[rows] + k
        iou = _iou(boxes[rows], objects.boxes[candidate])
        better = iou > overlap[rows]
        overlap[rows[better]] = iou[better]
        match[rows[better]] = candidate[better]
    return overlap, match


def _iou(a: Floats, b: Floats) -> Floats:
    """IoU of boxes pairwise, (N, 4) and (N, 4); sides include the last pixel; operations in Detectron2's order."""
    width = np.maximum(np.minimum(b[:, 2], a[:, 2]) - np.maximum(b[:, 0], a[:, 0]) + 1.0, 0.0)
    height = np.maximum(np.minimum(b[:, 3], a[:, 3]) - np.maximum(b[:, 1], a[:, 1]) + 1.0, 0.0)
    shared = width * height
    area_a = (a[:, 2] - a[:, 0] + 1.0) * (a[:, 3] - a[:, 1] + 1.0)
    area_b = (b[:, 2] - b[:, 0] + 1.0) * (b[:, 3] - b[:, 1] + 1.0)
    return np.asarray(shared / (area_a + area_b - shared))


def _average_precision(
    hit: NDArray[np.bool_], match: NDArray[np.int64], difficult: NDArray[np.bool_], positives: int, points_11: bool
) -> float:
    """AP from the object that each detection, in descending order of score, hits."""
    counted = hit.copy()
    counted[hit] = ~difficult[match[hit]]
    true = np.zeros(len(hit), dtype=bool)
    rows = np.flatnonzero(counted)
    true[rows[np.unique(match[rows], return_index=True)[1]]] = True  # the first to hit an object
    false = ~hit | (counted & ~true)
    hits, misses = np.cumsum(true, dtype=np.float64), np.cumsum(false, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):  # a class without objects has no recall
        recall = hits / float(positives)
    precision = hits / np.maximum(hits + misses, np.finfo(np.float64).eps)
    return _eleven_points(recall, precision) if points_11 else _area(recall, precision)


def _eleven_points(recall: Floats, precision: Floats) -> float:
    """Mean of the best precision at recalls of at least 0, 0.1, …, 1."""
    ap = 0.0
    for threshold in np.arange(0.0, 1.1, 0.1):
        reached = precision[recall >= threshold]
        ap += (reached.max() if len(reached) else 0.0) / 11.0
    return float(ap)


def _area(recall: Floats, precision: Floats) -> float:
    """Area under the precision-recall curve, made monotonic from the right."""
    recall = np.concatenate(([0.0], recall, [1.0]))
    precision = np.concatenate(([0.0], precision, [0.0]))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(np.sum((recall[steps + 1] - recall[steps]) * envelope[steps + 1]))


def objects_by_class(dataset: Dataset) -> list[Objects]:
    """The split's annotated objects, class by class."""
    rows = [
        (thing.label, index, *thing.box, thing.difficult)
        for index, record in enumerate(dataset.records)
        for thing in record.annotations
    ]
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    found = []
    for label in range(len(dataset.classes)):
        part = table[table[:, 0] == label]
        found.append(Objects(part[:, 1].astype(np.int64), part[:, 2:6], part[:, 6].astype(bool)))
    return found
