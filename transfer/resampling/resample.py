"""A trial's AP on resampled test sets, the same for every trial of a test set: trials can be paired."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssl_transfer.formats.detections import Matches
from transfer.resampling.weighted_ap import SUMMARIES, Reweigher

RESAMPLES = 2000
SEED = 20210620
"""Of the draws; they depend on the number of images and on nothing else."""
BLOCK = 500
"""Resamples computed at once; the draws do not depend on it."""
BLOCK_DRAWS = 2_500_000
"""At most so many drawn images at once: 20 MB."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Resampled:
    """AP on resampled test sets.

    Attributes:
        values: AP, AP50, AP75 → (R,) per cent.
        per_class: (classes, R) AP of each class in per cent; NaN where a resample has no object of it.
        draws: SHA-256 of the multiplicities; results with equal `draws` are paired.
    """

    values: Mapping[str, Floats]
    per_class: Floats
    draws: str


def resample(
    matches: Matches, *, images: int, classes: int, metric: str, area: str = "all", resamples: int = RESAMPLES
) -> Resampled:
    """Compute AP on test sets of as many images, drawn with replacement by `scipy.stats.bootstrap`.

    Args:
        matches: the matched detections of a branch.
        images: number of images of the split; of a single image every resample is the split itself.
        classes: number of classes.
        metric: `voc2007`, `voc2012` or `coco`.
        area: one of AREAS.
        resamples: how many.
    """
    reweigh = Reweigher(matches, images=images, classes=classes, metric=metric, area=area)
    digest = hashlib.sha256()

    def statistic(drawn: NDArray[np.int64], axis: int = -1) -> Floats:
        weights = multiplicities(drawn, images)
        digest.update(weights.tobytes())
        return np.concatenate(reweigh(np.ascontiguousarray(weights.T, dtype=np.float64)))

    found = _distribution(statistic, images, resamples)
    values = {name: np.ascontiguousarray(row) for name, row in zip(SUMMARIES, found, strict=False)}
    return Resampled(values, found[len(SUMMARIES) :], digest.hexdigest())


def multiplicities(drawn: NDArray[np.int64], images: int) -> NDArray[np.uint16]:
    """How often each image was drawn, (B, images), from the drawn indices, (B, images)."""
    offset = np.arange(len(drawn))[:, None] * images
    counts = np.bincount((drawn + offset).ravel(), minlength=len(drawn) * images)
    return counts.reshape(len(drawn), images).astype("<u2")


def _distribution(statistic, images: int, resamples: int) -> Floats:  # type: ignore[no-untyped-def]
    import warnings

    from scipy import stats  # loads slowly

    if images < 2:
        return np.repeat(statistic(np.zeros((1, images), dtype=np.int64)), resamples, axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about an interval that is not used: a class can be NaN throughout
        found = stats.bootstrap(
            (np.arange(images),),
            statistic,
            n_resamples=resamples,
            batch=max(1, min(BLOCK, BLOCK_DRAWS // images)),
            vectorized=True,
            method="percentile",
            random_state=np.random.default_rng(SEED),
        )
    return np.asarray(found.bootstrap_distribution)
