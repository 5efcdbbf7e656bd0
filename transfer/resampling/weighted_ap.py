"""AP of matched detections in which each image counts as often as a resample drew it.

A detection of an image that was drawn m times counts m times, and so do the image's objects. Matching is within an
image, and sorting by score does not depend on the draw, so a resample only re-weighs sorted detections.

`average_precision` and `per_class` take one vector of weights, step by step as the metric does: without weights they
give its digits. `Reweigher` takes many at once; `tests/transfer/resampling` compares the two. Definitions: VOC's as in
`transfer/evaluation/voc_metric.py`; COCO's [pycocotools: cocoeval.py, accumulate and summarize].
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssl_transfer.formats.detections import AREAS, THRESHOLDS, Matches

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

SUMMARIES = {"AP": slice(0, 10), "AP50": slice(0, 1), "AP75": slice(5, 6)}
"""The metrics, and which of THRESHOLDS each averages over."""
RECALLS = {"voc2007": np.arange(0.0, 1.1, 0.1), "coco": np.linspace(0.0, 1.0, 101)}
"""The recalls at which precision is read; VOC 2012's metric is the area under the whole curve."""
EPS = float(np.finfo(np.float64).eps)

Floats = NDArray[np.float64]
Weights = NDArray[Any]


def average_precision(
    matches: Matches, classes: int, metric: str, weights: Weights | None = None, *, area: str = "all"
) -> dict[str, float]:
    """AP, AP50 and AP75 in per cent, NaN where nothing can be computed.

    Args:
        matches: the matched detections of a branch.
        classes: number of classes.
        metric: `voc2007`, `voc2012` or `coco`.
        weights: (images,) how often each image counts; None: once, with the metric's own digits.
        area: one of AREAS: only objects of this size, as COCO counts them.
    """
    if metric == "coco":
        precision = coco_precision(matches, classes, weights, area)
        return {name: _mean_percent(precision[part]) for name, part in SUMMARIES.items()}
    aps = _voc_percent(matches, classes, metric, weights, area)
    aps = aps[~np.isinf(aps[:, 0])]
    if not len(aps):
        return dict.fromkeys(SUMMARIES, float("nan"))
    means = [np.mean(column.tolist()) for column in aps.T]  # the sums of `voc_evaluator.summarize`
    return {name: float(np.mean(means[part])) for name, part in SUMMARIES.items()}


def per_class(
    matches: Matches, classes: int, metric: str, weights: Weights | None = None, *, area: str = "all"
) -> dict[str, Floats]:
    """Each class's AP, AP50 and AP75, (classes,) in per cent; NaN where it has no object. Arguments as above."""
    labels, parts = range(classes), SUMMARIES.items()
    if metric == "coco":
        precision = coco_precision(matches, classes, weights, area)
        return {name: np.array([_mean_percent(precision[part, :, k]) for k in labels]) for name, part in parts}
    aps = _voc_percent(matches, classes, metric, weights, area)
    aps[np.isinf(aps)] = np.nan
    return {name: np.array([np.mean(aps[k, part]) for k in labels]) for name, part in parts}


def _mean_percent(precision: Floats) -> float:
    reached = precision[precision > -1]
    return float(np.mean(reached) * 100) if reached.size else float("nan")


def coco_precision(matches: Matches, classes: int, weights: Weights | None = None, area: str = "all") -> Floats:
    """(thresholds, recalls, classes) precision; −1 where a class has no object."""
    precision = np.full((len(THRESHOLDS), len(RECALLS["coco"]), classes), -1.0)
    for k, positives, curves in _curves(matches, classes, weights, area):
        if positives == 0:
            continue
        for t, (hits, misses) in enumerate(curves):
            envelope = np.maximum.accumulate((hits / (misses + hits + EPS))[::-1])[::-1]
            first = np.searchsorted(hits / positives, RECALLS["coco"], side="left")
            precision[t, :, k] = np.append(envelope, 0.0)[first]
    return precision


def _voc_percent(matches: Matches, classes: int, metric: str, weights: Weights | None, area: str) -> Floats:
    """(classes, thresholds) AP in per cent; −inf for a class that is left out."""
    area_under = {"voc2007": False, "voc2012": True}[metric]
    aps = np.zeros((classes, len(THRESHOLDS)))
    always = _always_measured(matches, classes, metric, area)
    for k, positives, curves in _curves(matches, classes, weights, area):
        if positives == 0 and not always[k]:
            aps[k] = -np.inf
            continue
        for t, (hits, misses) in enumerate(curves):
            with np.errstate(divide="ignore", invalid="ignore"):  # a class without objects has no recall
                recall, precision = hits / float(positives), hits / np.maximum(hits + misses, EPS)
                aps[k, t] = (_area_under if area_under else _eleven_points)(recall, precision)
    return aps * 100


def _eleven_points(recall: Floats, precision: Floats) -> float:
    ap = 0.0
    for threshold in RECALLS["voc2007"]:
        ap += precision[recall >= threshold].max(initial=0.0) / 11.0
    return ap


def _area_under(recall: Floats, precision: Floats) -> float:
    recall = np.concatenate(([0.0], recall, [1.0]))
    envelope = np.maximum.accumulate(np.concatenate(([0.0], precision, [0.0]))[::-1])[::-1]
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(np.sum((recall[steps + 1] - recall[steps]) * envelope[steps + 1]))


def _curves(matches: Matches, classes: int, weights: Weights | None, area: str) -> Any:
    """Yield each class's label, number of objects, and for each threshold the hits and misses so far."""
    a, bounds = AREAS.index(area), np.searchsorted(matches.label, np.arange(classes + 1))
    bits = np.arange(len(THRESHOLDS))[:, None]
    for k, positives in enumerate(_positives(matches, classes, weights, area)):
        rows = slice(bounds[k], bounds[k + 1])
        weight = 1.0 if weights is None else weights[matches.image[rows]].astype(np.float64)
        true, ignored = ((one[a, rows] >> bits) & 1 > 0 for one in (matches.hit, matches.ignored))
        sums = [np.cumsum(one * weight, axis=1, dtype=np.float64) for one in (true, ~(true | ignored))]
        yield k, positives, list(zip(*sums, strict=True))


def _positives(matches: Matches, classes: int, weights: Weights | None, area: str) -> NDArray[Any]:
    """(classes,) number of objects."""
    counted = (matches.object_area >> AREAS.index(area)) & 1 > 0
    weight = None if weights is None else weights[matches.object_image[counted]]
    return np.bincount(matches.object_label[counted], weight, classes)


def _always_measured(matches: Matches, classes: int, metric: str, area: str) -> NDArray[np.bool_]:
    """Classes that VOC's mean contains though they have no object at all: 0, or NaN.

    A class that lacks objects only in a resample or in a range of area is left out, as COCO's rule says.
    """
    return (_positives(matches, classes, None, "all") == 0) & (metric != "coco" and area == "all")


class _Threshold(NamedTuple):
    """The P true positives of one class at one threshold, best score first."""

    rows: NDArray[np.int64]  # their positions among the class's true positives at any threshold
    image: NDArray[np.int32]
    ignored: csr_matrix | None  # (P, images) ignored detections of each image since the true positive before


class _Class(NamedTuple):
    detections: csr_matrix  # (true positives at any threshold, images) detections since the one before
    thresholds: list[_Threshold]


class Reweigher:
    """AP of one branch for many weightings of the images at once, as matrices of positions × weightings.

    Precision matters at true positives alone: between them it falls. A true positive of weight m raises recall m times
    and precision with it, so its last copy decides; one of weight 0 stands where precision is not above that of the
    true positive before.

    Args:
        matches: the matched detections of a branch.
        images: number of images of the split.
        classes: number of classes.
        metric: `voc2007`, `voc2012` or `coco`.
        area: one of AREAS.
    """

    def __init__(self, matches: Matches, *, images: int, classes: int, metric: str, area: str = "all") -> None:
        self.metric, self.count = metric, classes
        a = AREAS.index(area)
        counted = (matches.object_area >> a) & 1 > 0
        self.objects = _counts(matches.object_label[counted], matches.object_image[counted], (classes, images))
        bounds = np.searchsorted(matches.label, np.arange(classes + 1))
        parts = [slice(bounds[k], bounds[k + 1]) for k in range(classes)]
        self.classes = [_class(matches.image[p], matches.hit[a, p], matches.ignored[a, p], images) for p in parts]
        self.fixed = _always_measured(matches, classes, metric, area)
        self.fixed_values = np.where(np.diff(bounds) * (metric == "voc2012") > 0, np.nan, 0.0)

    def __call__(self, weights: Floats) -> tuple[Floats, Floats]:
        """AP where image i counts weights[i, b] times.

        Args:
            weights: (images, B) whole numbers.

        Returns:
            (metrics of SUMMARIES, B) and (classes, B) AP of each class, in per cent, NaN without objects.
        """
        positives = self.objects @ weights
        aps = np.full((self.count, len(THRESHOLDS), weights.shape[1]), np.nan)
        for k, one in enumerate(self.classes):
            aps[k] = self.fixed_values[k] if self.fixed[k] else self._class_aps(one, weights, positives[k])
        absent = (positives == 0) & ~self.fixed[:, None]
        present = np.where(absent, 0.0, 1.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            each = [np.where(absent, 0.0, aps[:, part].mean(1)).sum(0) for part in SUMMARIES.values()]
            overall = np.array(each) / present.sum(0)
        return overall * 100, np.where(absent, np.nan, aps.mean(1)) * 100

    def _class_aps(self, one: _Class, weights: Floats, positives: Floats) -> Floats:
        """(thresholds, B) AP of one class in 0…1."""
        aps = np.zeros((len(THRESHOLDS), weights.shape[1]))
        detections = _running(np.add, one.detections @ weights)
        for ap, threshold in zip(aps, one.thresholds, strict=True):
            if not len(threshold.rows):
                continue
            hits = _running(np.add, weights[threshold.image])
            precision = detections[threshold.rows]
            if threshold.ignored is not None:
                precision -= _running(np.add, threshold.ignored @ weights)
            precision = precision + EPS if self.metric == "coco" else np.maximum(precision, EPS, out=precision)
            np.divide(hits, precision, out=precision)
            _running(np.maximum, precision[::-1])
            reached, of = self._reached(hits, positives)
            reached[1:] -= reached[:-1]
            ap[:] = np.einsum("pb,pb->b", reached, precision) / of
        return aps

    def _reached(self, hits: Floats, positives: Floats) -> tuple[Floats, int]:
        """How many of the recalls these hits reach, (P, B), and of how many; for the area the recall itself, of 1."""
        if self.metric == "voc2012":
            return hits / np.maximum(positives, 1.0), 1
        steps = len(RECALLS[self.metric]) - 1
        count = hits * (steps / np.maximum(positives, 1.0)) + (1 + 1e-9)
        np.floor(count, out=count)
        # Some recalls of the metric, such as 3 × 0.1, are a bit above their fraction: a recall of 3/10 is below it.
        late = np.flatnonzero(np.arange(steps + 1) / steps < RECALLS[self.metric])
        for step in late:
            columns = np.flatnonzero(positives * step % steps == 0)
            count[:, columns] -= hits[:, columns] * steps == positives[columns] * step
        return count, steps + 1


def _class(image: NDArray[np.int32], hit: NDArray[np.uint16], ignored: NDArray[np.uint16], images: int) -> _Class:
    positions = np.flatnonzero(hit)
    behind = np.searchsorted(positions, np.arange(len(image)))  # each detection's next true positive
    inside = behind < len(positions)
    thresholds = []
    for t in range(len(THRESHOLDS)):
        rows = np.flatnonzero((hit[positions] >> t) & 1)
        skipped = np.flatnonzero((ignored >> t) & 1)
        next_one = np.searchsorted(positions[rows], skipped)
        skipped, next_one = skipped[next_one < len(rows)], next_one[next_one < len(rows)]
        between = _counts(next_one, image[skipped], (len(rows), images)) if len(skipped) else None
        thresholds.append(_Threshold(rows, image[positions[rows]], between))
    return _Class(_counts(behind[inside], image[inside], (len(positions), images)), thresholds)


def _counts(rows: NDArray[Any], columns: NDArray[Any], shape: tuple[int, int]) -> csr_matrix:
    from scipy.sparse import csr_matrix  # scipy loads slowly

    return csr_matrix((np.ones(len(rows)), (rows, columns)), shape=shape)


def _running(operation: np.ufunc, values: Floats) -> Floats:
    """Accumulate along the first axis in place, row by row: numpy's own `accumulate` is ten times slower there."""
    for previous, row in pairwise(values):
        operation(previous, row, out=row)
    return values
