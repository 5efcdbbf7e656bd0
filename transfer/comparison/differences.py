"""All numbers of a comparison: differences of AP overall, per class and per object size, curves, errors, images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssl_transfer.formats.detections import AREAS, Detections
from transfer.comparison.gallery import DifferingImage, choose_images
from transfer.comparison.sides import Side
from transfer.comparison.tide import KINDS, counted_objects, find_errors
from transfer.resampling.resample import resample
from transfer.resampling.verdict import Verdict, compare, holm
from transfer.resampling.weighted_ap import average_precision, coco_precision, per_class
from transfer.tasks.task import Dataset

PARTS = ("metrics", "sizes", "classes")
"""AP, AP50 and AP75; AP of small, medium and large objects; AP of each class, the largest difference first."""
Floats = NDArray[np.float64]
Figures = dict[tuple[str, str], tuple[float, Floats]]
"""(part, name) → a trial's figure in per cent, and the same on resampled test sets."""
Errors = Mapping[str, tuple[float, float]]
"""As `find_errors` has them."""


@dataclass(frozen=True)
class Difference:
    """A figure of both sides, in per cent, averaged over trials (None: not computable), and what it says of them."""

    name: str
    ours: float | None
    theirs: float | None
    verdict: Verdict | None


@dataclass(frozen=True)
class Comparison:
    """Two sides compared.

    Attributes:
        sides: the two.
        differences: `bbox` and, where both sides have it, `segm` → each of PARTS.
        curves: of each side, (classes, 101): precision of boxes at COCO's recalls, IoU 0.5; NaN without objects.
        errors: of each side, means over trials; None without annotations.
        images: those on which the first trials differ most; empty without annotations.
        note: why there are no annotations; empty where there are.
    """

    sides: tuple[Side, Side]
    differences: Mapping[str, Mapping[str, tuple[Difference, ...]]]
    curves: tuple[Floats, Floats]
    errors: tuple[Errors, Errors] | None
    images: tuple[DifferingImage, ...]
    note: str


def compare_sides(
    sides: tuple[Side, Side], dataset: Dataset | None, note: str, images: int, stage: Callable[[str], None]
) -> Comparison:
    """Compute everything.

    Args:
        sides: the two, measured on the same split.
        dataset: the split; None: neither errors nor images, and `note` says why.
        note: see `dataset`.
        images: number of images to choose.
        stage: called with the name of what is computed next.
    """
    differences, errors, chosen = {}, None, list[DifferingImage]()
    for branch in ("bbox", "segm"):
        if all(branch in found.matches for side in sides for found in side.found):
            stage(f"resampling {branch}")
            ours, theirs = ([_figures(found, branch) for found in side.found] for side in sides)
            differences[branch] = {part: _differences(ours, theirs, part) for part in PARTS}
    if dataset is not None:
        stage("classifying errors")
        a, b = (_mean_errors(side.found, counted_objects(dataset)) for side in sides)
        errors, chosen = (a, b), choose_images(sides[0].found[0], sides[1].found[0], images)
    here, there = (np.mean([_curves(found) for found in side.found], axis=0) for side in sides)
    return Comparison(sides, differences, (here, there), errors, tuple(chosen), note)


def _figures(found: Detections, branch: str) -> Figures:
    matches, count, figures = found.matches[branch], len(found.classes), Figures()
    for area in AREAS:
        points = average_precision(matches, count, found.metric, area=area)
        drawn = resample(matches, images=len(found.images), classes=count, metric=found.metric, area=area)
        if area != "all":
            figures["sizes", area] = points["AP"], drawn.values["AP"]
            continue
        figures |= {("metrics", name): (value, drawn.values[name]) for name, value in points.items()}
        each = per_class(matches, count, found.metric)["AP"].tolist()
        figures |= {
            ("classes", name): (each[label], drawn.per_class[label]) for label, name in enumerate(found.classes)
        }
    return figures


def _differences(ours: Sequence[Figures], theirs: Sequence[Figures], part: str) -> tuple[Difference, ...]:
    """The differences of a part; those of classes have Holm's correction and are sorted."""
    names = [name for of, name in ours[0] if of == part]
    points = [[[trial[part, name][0] for trial in side] for side in (ours, theirs)] for name in names]
    drawn = [[[trial[part, name][1] for trial in side] for side in (ours, theirs)] for name in names]
    verdicts = [compare(*both, *values) for both, values in zip(points, drawn, strict=True)]
    verdicts = holm(verdicts) if part == "classes" else verdicts
    means = [(_mean(here), _mean(there)) for here, there in points]
    made = [Difference(name, a, b, v) for name, (a, b), v in zip(names, means, verdicts, strict=True)]
    by_size = sorted(
        made, key=lambda one: (one.verdict is None, -abs((one.ours or 0.0) - (one.theirs or 0.0)), one.name)
    )
    return tuple(by_size if part == "classes" else made)


def _mean(values: Sequence[float]) -> float | None:
    mean = float(np.mean(values))
    return mean if np.isfinite(mean) else None


def _mean_errors(trials: Sequence[Detections], objects: Floats) -> Errors:
    each = [find_errors(found, objects) for found in trials]
    means = {kind: np.mean([errors[kind] for errors in each], axis=0).tolist() for kind in KINDS}
    return {kind: (gain, count) for kind, (gain, count) in means.items()}


def _curves(found: Detections) -> Floats:
    precision = coco_precision(found.matches["bbox"], len(found.classes))[0].T
    return np.where(precision < 0, np.nan, precision)
