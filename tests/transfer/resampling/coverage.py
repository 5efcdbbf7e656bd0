"""How often a 95 % interval holds the true difference: simulated tables of detectors whose true AP is known.

    python tests/transfer/resampling/coverage.py --tables 1000 --images 300 --seed-spread 0.06

A table is a test set, and trials of three detectors on it: A, a B that is as good, and a C that is worse by `GAP`. The
truth is AP on 200,000 images of the same population, as a function of a trial's quality.

- Annotations: five of PASCAL VOC's classes, with the numbers of images and objects of VOC2007 test (its development
  kit, table 2: 4,952 images): an image has a class with that frequency, then 1 + a geometric number of objects.
- A detector scores every object and every distractor: quality, the image's and the object's difficulty (the same for
  all detectors), what the detector makes of it (the same for its trials), and what the trial makes of it.
- The first trial has no spread of seeds: it serves n = 1, which is about these weights alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[3]))
from ssl_transfer.formats.detections import Matches
from transfer.resampling.resample import SEED, multiplicities
from transfer.resampling.verdict import compare
from transfer.resampling.weighted_ap import Reweigher, average_precision

Floats = NDArray[np.float64]
VOC2007_TEST = {"car": (721, 1201), "cat": (322, 358), "chair": (417, 756), "dog": (418, 489), "person": (2007, 4528)}
VOC2007_IMAGES = 4952
QUALITY, GAP = 1.0, 0.2
DISTRACTORS = 4
"""An image's expected number of them."""
METRIC = "voc2007"


@dataclass(frozen=True)
class World:
    """A test set: objects and distractors with their image, label and difficulty."""

    image: NDArray[np.int32]
    label: NDArray[np.int16]
    is_object: NDArray[np.bool_]
    score: Floats


def make_world(images: int, rng: np.random.Generator) -> World:
    """Sample a test set."""
    rows, labels = [], []
    for label, (with_it, objects) in enumerate(VOC2007_TEST.values()):
        chosen = np.flatnonzero(rng.random(images) < with_it / VOC2007_IMAGES)
        rows.append(np.repeat(chosen, rng.geometric(with_it / objects, len(chosen))))
        labels.append(np.full(len(rows[-1]), label))
    count = sum(map(len, rows))
    rows.append(np.repeat(np.arange(images), rng.poisson(DISTRACTORS, images)))
    share = np.array([objects for _, objects in VOC2007_TEST.values()]) ** 0.7
    labels.append(rng.choice(len(share), len(rows[-1]), p=share / share.sum()))
    image = np.concatenate(rows)
    is_object = np.arange(len(image)) < count
    hard = rng.normal(0, 0.6, images)[image] + rng.normal(0, 0.8, len(image))
    label = np.concatenate(labels)
    return World(image.astype(np.int32), label.astype(np.int16), is_object, np.where(is_object, -hard, hard - 1.2))


def detect(world: World, opinion: Floats, quality: float, rng: np.random.Generator) -> Matches:
    """A trial's detections, matched at IoU 0.5 alone: AP50 is what is compared."""
    score = world.score + opinion + rng.normal(0, 0.3, len(opinion)) + quality * world.is_object
    order = np.flatnonzero(score > -1)
    order = order[np.lexsort((-score[order], world.label[order]))]
    hit = np.tile(world.is_object[order].astype(np.uint16), (4, 1))
    things = np.flatnonzero(world.is_object)
    area = np.full(len(things), 15, dtype=np.uint8)
    found = (world.image[order], world.label[order], score[order], hit, np.zeros_like(hit), order.astype(np.int32))
    return Matches(*found, world.image[things], world.label[things], area)


@lru_cache
def true_ap50(images: int = 200_000) -> Callable[[Any], Any]:
    """AP50 of the population as a function of a trial's quality."""
    rng = np.random.default_rng(99)
    world = make_world(images, rng)
    opinion, grid = rng.normal(0, 0.5, len(world.image)), np.linspace(QUALITY - 1.2, QUALITY + 1.0, 12)
    found = [
        average_precision(detect(world, opinion, q, np.random.default_rng(1)), len(VOC2007_TEST), METRIC)["AP50"]
        for q in grid
    ]
    return np.polynomial.Polynomial.fit(grid, found, 6)


def mean_ap50(quality: float, spread: float) -> float:
    """Its mean over the seeds."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    return float(true_ap50()(quality + spread * nodes) @ weights / weights.sum())


@dataclass(frozen=True)
class Table:
    """AP50 of the trials, (3, trials), and on the resampled test sets, (3, trials, R)."""

    points: Floats
    drawn: Floats


def make_tables(
    tables: int, images: int, spread: float, trials: int, resamples: int, first: int = 0
) -> Iterator[Table]:
    """Simulate tables; the draws are those that every trial uses."""
    draws = np.random.default_rng(SEED).integers(0, images, (resamples, images))
    every = np.concatenate([np.ones((1, images)), multiplicities(draws, images)])  # the test set itself first
    weights = np.ascontiguousarray(every.T, dtype=np.float64)
    for number in range(first, first + tables):
        rng = np.random.default_rng([18, number])
        world, found = make_world(images, rng), np.empty((3, trials, resamples + 1))
        for row, quality in enumerate((QUALITY, QUALITY, QUALITY - GAP)):
            opinion = rng.normal(0, 0.5, len(world.image))
            for trial in range(trials):
                matches = detect(world, opinion, quality + (rng.normal(0, spread) if trial else 0.0), rng)
                reweigh = Reweigher(matches, images=images, classes=len(VOC2007_TEST), metric=METRIC)
                found[row, trial] = reweigh(weights)[0][1]
        yield Table(found[..., 0], found[..., 1:])


Interval = tuple[float, float]


def verdict(a: Floats, b: Floats, drawn: Floats, other: Floats) -> Interval:
    """What the project reports."""
    found = compare(a.tolist(), b.tolist(), drawn, other)
    assert found is not None
    return found.low, found.high


def percentile(a: Floats, b: Floats, drawn: Floats, other: Floats) -> Interval:
    """Percentiles of the resampled difference of means: images alone."""
    low, high = np.quantile(drawn.mean(0) - other.mean(0), [0.025, 0.975])
    return float(low), float(high)


def basic(a: Floats, b: Floats, drawn: Floats, other: Floats) -> Interval:
    """Percentiles, mirrored at the difference."""
    low, high = percentile(a, b, drawn, other)
    return 2 * (a.mean() - b.mean()) - high, 2 * (a.mean() - b.mean()) - low


def nested(a: Floats, b: Floats, drawn: Floats, other: Floats, fewer: int = 0) -> Interval:
    """Percentiles where each resample draws the trials, too: n, or n − 1 of n (Rao and Wu, 1988)."""
    rng, at = np.random.default_rng(0), np.arange(drawn.shape[1])[:, None]
    sides = [one[rng.integers(0, len(one), (len(at), len(one) - fewer)), at].mean(1) for one in (drawn, other)]
    low, high = np.quantile(sides[0] - sides[1], [0.025, 0.975])
    return float(low), float(high)


def rao_wu(a: Floats, b: Floats, drawn: Floats, other: Floats) -> Interval:
    """`nested` with n − 1 of n trials."""
    return nested(a, b, drawn, other, fewer=1)


def plain_sum(a: Floats, b: Floats, drawn: Floats, other: Floats) -> Interval:
    """t interval of the images' variance plus the trials' spread as it is."""
    parts = [np.var(drawn.mean(0) - other.mean(0), ddof=1), np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)]
    df = sum(parts) ** 2 / (parts[1] ** 2 / (len(a) - 1) + parts[2] ** 2 / (len(b) - 1))
    low, high = stats.t.interval(0.95, df, a.mean() - b.mean(), np.sqrt(sum(parts)))
    return float(low), float(high)


def welch(a: Floats, b: Floats, drawn: Floats, other: Floats) -> Interval:
    """Welch's interval: seeds alone."""
    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    return float(low), float(high)


SINGLE = (verdict, percentile, basic)
SEVERAL = (verdict, plain_sum, nested, rao_wu, percentile, welch)


@dataclass
class Coverage:
    """Shares of the tables in per cent: the interval holds the true difference, excludes 0; its mean width."""

    method: str
    trials: int
    planted: bool
    holds: float
    finds: float
    width: float


def measure(
    tables: Sequence[Table], spread: float, trials: int, methods: Sequence[Callable[..., Interval]]
) -> list[Coverage]:
    """Coverage of each method with the null difference A − B and with the planted one, A − C."""
    at = slice(0, 1) if trials == 1 else slice(1, trials + 1)
    of = true_ap50() if trials == 1 else lambda quality: mean_ap50(quality, spread)
    rows = []
    for other, truth in ((1, 0.0), (2, float(of(QUALITY) - of(QUALITY - GAP)))):
        for method in methods:
            ends = np.array(
                [
                    method(one.points[0, at], one.points[other, at], one.drawn[0, at], one.drawn[other, at])
                    for one in tables
                ]
            )
            holds = (ends[:, 0] <= truth) & (truth <= ends[:, 1])
            finds = (ends[:, 0] > 0) | (ends[:, 1] < 0)
            shares = (float(100 * holds.mean()), float(100 * finds.mean()), float(np.mean(ends[:, 1] - ends[:, 0])))
            rows.append(Coverage(method.__name__, trials, other == 2, *shares))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first table, to measure in parts")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--seed-spread", type=float, default=0.06, help="of a trial's quality; 0.01 is about 0.2 AP50")
    parser.add_argument("--resamples", type=int, default=500)
    args = parser.parse_args()
    tables = list(make_tables(args.tables, args.images, args.seed_spread, 6, args.resamples, args.first))
    lines = [f"{args.tables} tables, {args.images} images, {args.resamples} resamples, spread {args.seed_spread}"]
    for trials in (1, 2, 5):
        for one in measure(tables, args.seed_spread, trials, SINGLE if trials == 1 else SEVERAL):
            name = f"n={trials} {'planted' if one.planted else 'null':8}{one.method:12}"
            lines.append(f"{name}holds {one.holds:5.1f} finds {one.finds:5.1f} width {one.width:6.2f}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
