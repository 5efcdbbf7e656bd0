"""Detections matched with annotated objects as VOC's and COCO's metrics do, once for all resamples. No torch.

Both metrics sort all detections of a class by their score and match them with the objects of their image; AP is then a
function of the matched flags in that order (`transfer.resampling`). So here is the order, the ties and the flags:

- VOC [detectron2: evaluation/pascal_voc_evaluation.py]: `transfer.evaluation.voc_metric`. Difficult objects are
  ignored with their detections.
- COCO [pycocotools: cocoeval.py, evaluateImg and accumulate]: of each image and class the 100 best; each takes the free
  object that it overlaps most, of equals the last; only where there is none, one that is ignored. Crowds may be taken
  any number of times and ignore their detections.

Ranges of area are COCO's: objects outside a range are ignored with their detections, and so is an unmatched detection
whose own area is outside. VOC's metric has no ranges: its objects are matched first, then ignored.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from ssl_transfer.formats.detections import AREA_BOUNDS, THRESHOLDS, Detections, Matches
from transfer.evaluation.voc_metric import ClassDetections, Objects, best_match, objects_by_class, rounded
from transfer.resampling.resample import resample
from transfer.tasks.datasets import Annotation
from transfer.tasks.task import Dataset

MOST = 100
"""Detections of an image and class that COCO's metric looks at."""
IOUS = np.linspace(0.5, 0.95, len(THRESHOLDS))
"""As pycocotools computes them: 0.6 and others differ from THRESHOLDS in the last digit."""
LOWEST, HIGHEST = np.array(AREA_BOUNDS).T[:, :, None]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DetectedObjects:
    """All detections of a split, image by image, as the metrics read them.

    Attributes:
        image: (N,) index of the image in the split, ascending.
        label: (N,) class.
        score: (N,) float64.
        corners: (N, 4) float32 x0, y0, x1, y1 in pixels.
        boxes: (N, 4) x, y, width, height in pixels: COCO's, which Detectron2 computes in float32.
        masks: N compressed RLE strings; None where masks are not measured.
    """

    image: NDArray[np.int32]
    label: NDArray[np.int16]
    score: Floats
    corners: NDArray[np.float32]
    boxes: Floats
    masks: Sequence[bytes] | None = None


def describe_detections(dataset: Dataset, found: DetectedObjects, *, toy: bool, keep_masks: bool = False) -> Detections:
    """What a trial keeps of its detections: matched, and with its AP on resampled test sets.

    Args:
        dataset: the test split.
        found: the detections.
        toy: made with an overlay that shrinks the run.
        keep_masks: TRANSFER.KEEP_MASKS.
    """
    metric = "coco" if dataset.split.layout == "coco" else f"voc{dataset.split.year}"
    matches = match(dataset, found)
    images, classes = len(dataset.records), len(dataset.classes)
    resampled = {
        branch: resample(one, images=images, classes=classes, metric=metric) for branch, one in matches.items()
    }
    return Detections(
        images=tuple(str(record.image_id) for record in dataset.records),
        classes=dataset.classes,
        metric=metric,
        test_split=dataset.split.name,
        truth=truth_digest(dataset),
        toy=toy,
        image=found.image,
        label=found.label,
        score=found.score.astype(np.float32),
        boxes=found.corners,
        masks=tuple(found.masks) if keep_masks and found.masks is not None else None,
        matches=matches,
        resamples={branch: one.values for branch, one in resampled.items()},
        draws=resampled["bbox"].draws,
    )


def match(dataset: Dataset, found: DetectedObjects) -> dict[str, Matches]:
    """What the detections match, by branch: `bbox`, and `segm` where there are masks."""
    if dataset.split.layout == "voc":
        return {"bbox": _match_voc(dataset, found)}
    branches = ("bbox",) if found.masks is None else ("bbox", "segm")
    return {branch: _match_coco(dataset, found, branch) for branch in branches}


def truth_digest(dataset: Dataset) -> str:
    """SHA-256 of the annotations as read: what must be equal for two results to be of the same test set."""
    rows = [
        [
            one.image_id,
            one.width,
            one.height,
            [[a.label, *a.box, a.difficult, a.crowd, a.area] for a in one.annotations],
        ]
        for one in dataset.records
    ]
    return hashlib.sha256(json.dumps([dataset.classes, rows], separators=(",", ":")).encode()).hexdigest()


def _match_voc(dataset: Dataset, found: DetectedObjects) -> Matches:
    boxes = found.corners.copy()
    boxes[:, :2] += 1  # in float32, as in Detectron2
    boxes, scores = rounded(boxes, 1), rounded(found.score.astype(np.float32), 3)
    orders, hits, ignored, things = [], [], [], objects_by_class(dataset)
    for label, objects in enumerate(things):
        rows = np.flatnonzero(found.label == label)
        rows = rows[np.argsort(-scores[rows])]  # the same numbers in the same sort as `average_precisions`
        flags = _voc_flags(objects, ClassDetections(found.image[rows].astype(np.int64), scores[rows], boxes[rows]))
        orders.append(rows)
        hits.append(flags[0])
        ignored.append(flags[1])
    kept = [~one.difficult for one in things]
    order = np.concatenate(orders)
    return Matches(
        image=found.image[order],
        label=found.label[order],
        score=scores[order],
        hit=np.concatenate(hits, axis=1),
        ignored=np.concatenate(ignored, axis=1),
        detection=order.astype(np.int32),
        object_image=np.concatenate([one.image[k] for one, k in zip(things, kept, strict=True)]).astype(np.int32),
        object_label=np.repeat(np.arange(len(things)), [k.sum() for k in kept]).astype(np.int16),
        object_area=_area_bits(np.concatenate([_areas(o.boxes[k]) for o, k in zip(things, kept, strict=True)])),
    )


def _voc_flags(objects: Objects, found: ClassDetections) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """`hit` and `ignored`, (A, N) each, of one class's sorted detections."""
    overlap, best = best_match(objects, found.image, found.boxes)
    outside = _outside(_areas(found.boxes))
    aside = objects.difficult | _outside(_areas(objects.boxes))
    hit = np.zeros((len(LOWEST), len(THRESHOLDS), len(best)), dtype=bool)
    ignored = np.zeros_like(hit)
    for t, threshold in enumerate(THRESHOLDS):
        rows = np.flatnonzero(overlap > threshold)
        first = np.zeros(len(best), dtype=bool)
        first[rows[np.unique(best[rows], return_index=True)[1]]] = True
        on_ignored = np.zeros_like(outside)
        on_ignored[:, rows] = aside[:, best[rows]]
        hit[:, t] = first & ~on_ignored
        ignored[:, t] = on_ignored | (outside & ~first)
    return _bits(hit), _bits(ignored)


def _match_coco(dataset: Dataset, found: DetectedObjects, branch: str) -> Matches:
    position = np.argsort(np.argsort([record.image_id for record in dataset.records]))  # the metric sorts by id
    order = np.lexsort((-found.score, position[found.image], found.label))
    starts = _starts(found.label[order], found.image[order])
    order = order[np.arange(len(order)) - np.repeat(starts[:-1], np.diff(starts)) < MOST]
    starts = _starts(found.label[order], found.image[order])
    things: dict[tuple[int, int], list[Annotation]] = defaultdict(list)
    for index, record in enumerate(dataset.records):
        for one in record.annotations:
            things[one.label, index].append(one)
    matched = np.zeros((len(LOWEST), len(IOUS), len(order)), dtype=bool)
    aside = np.zeros_like(matched)
    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        rows, image = order[start:stop], int(found.image[order[start]])
        objects = things.get((int(found.label[rows[0]]), image))
        if objects:
            iou = _ious(dataset, found, rows, objects, branch)
            crowd = np.array([one.crowd for one in objects])
            ignored = crowd | _outside(np.array([one.area for one in objects]))
            _take(iou, ignored, crowd, matched[..., start:stop], aside[..., start:stop])
    area = _detected_areas(dataset, found, branch)[order]
    ignored = aside | (_outside(area)[:, None] & ~matched)
    final = np.lexsort((-found.score[order], found.label[order]))  # stable, as pycocotools' mergesort
    order = order[final]
    counted = sorted(
        (label, image, one.area) for (label, image), all_ in things.items() for one in all_ if not one.crowd
    )
    labels, images, areas = np.array(counted, dtype=np.float64).reshape(-1, 3).T
    return Matches(
        image=found.image[order],
        label=found.label[order],
        score=found.score[order],
        hit=_bits(matched & ~aside)[:, final],
        ignored=_bits(ignored)[:, final],
        detection=order.astype(np.int32),
        object_image=images.astype(np.int32),
        object_label=labels.astype(np.int16),
        object_area=_area_bits(areas),
    )


def _take(iou: Floats, ignored: Bools, crowd: Bools, matched: Bools, aside: Bools) -> None:
    """Match one image's detections of one class, best score first, for every area and threshold at once.

    Args:
        iou: (N, G).
        ignored: (A, G) objects that do not count in an area range.
        crowd: (G,).
        matched, aside: (A, T, N), written: has an object; has one that is ignored.
    """
    count = len(crowd)
    taken = np.zeros((len(ignored), len(IOUS), count), dtype=bool)
    counts, single = np.where(ignored, 0, count), ~crowd
    areas, levels = np.ogrid[: len(ignored), : len(IOUS)]
    for row in np.flatnonzero(iou.max(axis=1) >= IOUS[0]).tolist():
        # The larger overlap is preferred, of equal ones the later object; before both, one that counts.
        preference = np.argsort(np.argsort(iou[row], kind="stable")) + counts
        free = (iou[row] >= IOUS[:, None]) & ~(taken & single)
        choice = np.where(free, preference[:, None], -1)
        best = choice.argmax(axis=-1)
        has = choice[areas, levels, best] >= 0
        matched[..., row] = has
        aside[..., row] = has & ignored[areas, best]
        taken[areas, levels, best] |= has


def _ious(
    dataset: Dataset, found: DetectedObjects, rows: NDArray[np.int64], objects: Sequence[Annotation], branch: str
) -> Floats:
    crowd = [int(one.crowd) for one in objects]
    if branch == "bbox":
        return np.asarray(rle.iou(found.boxes[rows], np.array([one.box for one in objects], np.float64), crowd))
    record = dataset.records[int(found.image[rows[0]])]
    assert found.masks is not None
    masks = [{"size": [record.height, record.width], "counts": found.masks[row]} for row in rows.tolist()]
    return np.asarray(rle.iou(masks, [_run_lengths(one, record.height, record.width) for one in objects], crowd))


def _run_lengths(one: Annotation, height: int, width: int) -> Any:
    """An object's mask as pycocotools' `annToRLE` makes it."""
    if isinstance(one.segmentation, dict):
        return one.segmentation
    return rle.merge(rle.frPyObjects(one.segmentation, height, width))


def _detected_areas(dataset: Dataset, found: DetectedObjects, branch: str) -> Floats:
    """Area of each detection in pixels: of its box, or of its mask."""
    if branch == "bbox" or not found.masks:
        return found.boxes[:, 2] * found.boxes[:, 3]
    sizes = [[record.height, record.width] for record in dataset.records]
    pairs = zip(found.image.tolist(), found.masks, strict=True)
    # One at a time: pycocotools 2.0.11 fails on a list of more than 255.
    return np.array([float(rle.area({"size": sizes[image], "counts": mask})) for image, mask in pairs])


def _starts(label: NDArray[np.int16], image: NDArray[np.int32]) -> NDArray[np.int64]:
    """Where runs of one class and image begin, and the end of the last one."""
    changes = np.flatnonzero((np.diff(label) != 0) | (np.diff(image) != 0)) + 1
    return np.concatenate(([0], changes, [len(label)])) if len(label) else np.zeros(1, dtype=np.int64)


def _areas(boxes: Floats) -> Floats:
    """Of VOC's boxes, whose sides include the last pixel; 0 where they end before they begin."""
    return np.asarray(np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2] + 1.0, 0.0), axis=1))


def _outside(area: Floats) -> Bools:
    """(A, N): whether an area is outside of a range."""
    return np.asarray((area < LOWEST) | (area > HIGHEST))


def _area_bits(area: Floats) -> NDArray[np.uint8]:
    bits = 1 << np.arange(len(LOWEST))
    return np.asarray((~_outside(area) * bits[:, None]).sum(axis=0), dtype=np.uint8)


def _bits(flags: Bools) -> NDArray[np.uint16]:
    """(A, T, N) → (A, N)."""
    packed = np.zeros((flags.shape[0], flags.shape[2]), dtype=np.uint16)
    for t in range(flags.shape[1]):
        packed |= flags[:, t].astype(np.uint16) << np.uint16(t)
    return packed
