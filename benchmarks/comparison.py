"""The paired bootstrap over test images beside hotcoco's `compare`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
import torch

from benchmarks.evaluators import Found, random_coco, random_coco_detections
from benchmarks.isolated import Work
from benchmarks.paired import PairedBenchmark
from ssl_transfer.formats.detections import Matches
from transfer.evaluation.coco_evaluator import boxes_for_coco, detections_of
from transfer.evaluation.collect import DetectionCollector
from transfer.evaluation.matching import match
from transfer.resampling.resample import resample
from transfer.resampling.verdict import Verdict, compare
from transfer.resampling.weighted_ap import average_precision
from transfer.tasks.classes import COCO
from transfer.tasks.task import Dataset, ground_truth

RESAMPLES = 200
"""A tenth of what a trial keeps: the peer takes a quarter of a second for each."""

SIZES = {"voc2007": (20, 12_032, 30), "coco": (80, 36_000, 100)}
"""Of VOC2007 test and COCO val2017: classes, objects that count, detections in an image."""


def compared(metric: str, images: str) -> Work:
    """Compare two detectors on a test set of full size on 2,000 resamples; their detections are matched before."""
    classes, objects, detections = SIZES[metric]
    matches = [random_matches(int(images), classes, objects, detections, seed) for seed in range(2)]
    options: dict[str, Any] = {"classes": classes, "metric": metric}

    def work() -> str:
        drawn = [[resample(one, images=int(images), **options).values["AP"]] for one in matches]
        points = [[average_precision(one, **options)["AP"]] for one in matches]
        verdict = compare(*points, *drawn)
        assert verdict is not None
        return f"ΔAP {verdict.low:.2f} … {verdict.high:.2f}"

    return work


def random_matches(images: int, classes: int, objects: int, detections: int, seed: int) -> Matches:
    """A detection of each object, and others, to `detections` an image; a fiftieth of the others is ignored."""
    truth, rng, count = np.random.default_rng(0), np.random.default_rng(1 + seed), images * detections
    object_image = np.sort(truth.integers(0, images, objects)).astype(np.int32)
    object_label = truth.integers(0, classes, objects).astype(np.int16)
    image = np.concatenate([object_image, rng.integers(0, images, count - objects)]).astype(np.int32)
    label = np.concatenate([object_label, rng.integers(0, classes, count - objects)]).astype(np.int16)
    fit = np.concatenate([rng.random(objects), np.zeros(count - objects)])
    score = 0.6 * rng.random(count) + 0.4 * fit
    hit = (1 << (fit * 11 - 1).astype(int).clip(0, 10)) - 1  # a good detection is a hit at more thresholds
    ignored = np.where((hit == 0) & (rng.random(count) < 0.02), 1023, 0)
    order = np.lexsort((-score, label))
    hits, others = (np.broadcast_to(one[order].astype(np.uint16), (4, count)) for one in (hit, ignored))
    area = np.full(objects, 15, dtype=np.uint8)
    kept = order.astype(np.int32)
    return Matches(image[order], label[order], score[order], hits, others, kept, object_image, object_label, area)


def paired_bootstrap(folder: Path, images: int = 300, detections: int = 30) -> PairedBenchmark:
    """Compare two detectors on 200 resamples of a COCO set; the matching of both is done before.

    Args:
        folder: where the annotation file is written.
        images, detections: how many images, and detections in each.
    """
    dataset = random_coco(folder, images)
    found = random_coco_detections(dataset, detections, masks=False)
    sides = [found, _worse(found)]
    matches = [_matches(dataset, side) for side in sides]
    evaluations = [_evaluation(dataset, side) for side in sides]

    def ours() -> Verdict:
        options: dict[str, Any] = {"classes": len(COCO), "metric": "coco"}
        drawn = [resample(one, images=images, resamples=RESAMPLES, **options).values["AP"] for one in matches]
        points = [average_precision(one, **options)["AP"] for one in matches]
        verdict = compare(points[:1], points[1:], drawn[:1], drawn[1:])
        assert verdict is not None
        return verdict

    def theirs() -> dict[str, Any]:
        return dict(hotcoco.compare(evaluations[1], evaluations[0], n_bootstrap=RESAMPLES))

    def equal() -> str:
        mine, its = ours(), theirs()
        gap = abs(mine.difference - its["deltas"]["AP"] * 100)
        assert gap <= 1e-9, f"Δ AP {mine.difference} and {its['deltas']['AP'] * 100}"
        width = (its["ci"]["AP"]["upper"] - its["ci"]["AP"]["lower"]) * 100
        return f"Δ {mine.difference:.4f}: |Δ−Δ| {gap:.0e}; interval {mine.high - mine.low:.3f}, peer's {width:.3f} wide"

    what = f"paired bootstrap of {RESAMPLES} resamples, {images} images × {detections} boxes"
    peer = "hotcoco.compare, whose resamples leave out repeated images"
    return PairedBenchmark(what, peer, ours, theirs, equal, RESAMPLES, "resamples")


def _worse(found: Found) -> Found:
    """The same detections with noise on their scores."""
    rng, worse = np.random.default_rng(2), copy.deepcopy(found)
    for _, output in worse:
        scores = output["instances"].scores
        scores += torch.tensor(rng.normal(0, 0.3, len(scores)), dtype=torch.float32)
    return worse


def _matches(dataset: Dataset, found: Found) -> Matches:
    collector = DetectionCollector(dataset, masks=False)
    for image, output in found:
        collector.add(image["image_id"], output["instances"])
    gathered = collector.gather()
    assert gathered is not None
    return match(dataset, gathered)["bbox"]


def _evaluation(dataset: Dataset, found: Found) -> hotcoco.COCOeval:
    images = [detections_of(image["image_id"], output["instances"], False) for image, output in found]
    truth = hotcoco.COCO(ground_truth(dataset))
    rows = boxes_for_coco(images, np.array(dataset.category_ids, dtype=np.int64))
    evaluation = hotcoco.COCOeval(truth, truth.load_res(rows), "bbox")
    evaluation.evaluate()
    return evaluation
