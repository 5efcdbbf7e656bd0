"""The metrics themselves on random data and on resampled copies of it: images are repeated under ids of their own."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ssl_transfer.formats.detections import AREAS, THRESHOLDS, Matches
from transfer.evaluation.voc_evaluator import summarize
from transfer.evaluation.voc_metric import ClassDetections, Objects, average_precisions, best_match

CLASSES = 4
Case = dict[str, NDArray[Any]]


def random_case(rng: np.random.Generator, images: int, objects: int = 60, others: int = 150) -> Case:
    """Objects (image, label, box x0 y0 x1 y1, difficult or crowd) and detections near them or anywhere."""
    corner = rng.uniform(0, 300, (objects, 2))
    boxes = np.concatenate([corner, corner + np.exp(rng.uniform(2.5, 5.2, (objects, 2)))], axis=1)
    near = np.repeat(np.arange(objects), 2)
    shaken = boxes[near] + rng.normal(0, 0.08, (len(near), 4)) * np.repeat(boxes[near, 2:] - boxes[near, :2], 2, 1)
    anywhere = rng.uniform(0, 300, (others, 2))
    image, label = np.sort(rng.integers(0, images, objects)), rng.integers(0, CLASSES, objects)
    found_image = np.concatenate([image[near], rng.integers(0, images, others)])
    found_label = np.concatenate([label[near], rng.integers(0, CLASSES, others)])
    found = np.concatenate([shaken, np.concatenate([anywhere, anywhere + rng.uniform(10, 120, (others, 2))], axis=1)])
    order = rng.permutation(len(found))
    return {
        "image": image,
        "label": label,
        "boxes": boxes,
        "ignore": rng.random(objects) < 0.15,
        "found_image": found_image[order],
        "found_label": found_label[order],
        "found_boxes": found[order],
        "score": rng.permutation(1000)[: len(found)] / 1000,  # no ties: VOC's sort breaks them in no stated order
    }


def repeated(case: Case, weights: NDArray[Any]) -> Case:
    """The case in which each image is repeated as often as `weights` says, each copy an image of its own."""
    copies = np.repeat(np.arange(len(weights)), weights)
    result: dict[str, list[Any]] = {key: [] for key in case}
    for copy, image in enumerate(copies):
        for keys, where in (
            (("image", "label", "boxes", "ignore"), case["image"] == image),
            (("found_image", "found_label", "found_boxes", "score"), case["found_image"] == image),
        ):
            for key in keys:
                rows = case[key][where]
                result[key].append(np.full_like(rows, copy) if key == keys[0] else rows)
    return {key: np.concatenate(rows) for key, rows in result.items()}


def voc_percent(case: Case, year: int) -> dict[str, float]:
    """VOC's metric; a class without objects is left out."""
    labels = np.unique(case["label"][~case["ignore"]])
    aps = [average_precisions(*_voc_class(case, label), points_11=year == 2007) * 100 for label in labels]
    found = summarize(np.array(aps), [str(label) for label in labels])
    return {name: found[name] for name in ("AP", "AP50", "AP75")}


def voc_matches(case: Case) -> Matches:
    """Matches of VOC's metric, in its order."""
    parts = []
    for label in range(CLASSES):
        objects, found = _voc_class(case, label)
        order = np.argsort(-found.scores)
        overlap, match = best_match(objects, found.image[order], found.boxes[order])
        hit, ignored = np.zeros(len(order), dtype=np.uint16), np.zeros(len(order), dtype=np.uint16)
        for t, threshold in enumerate(THRESHOLDS):
            taken = set()
            for row in np.flatnonzero(overlap > threshold):
                if objects.difficult[match[row]]:
                    ignored[row] |= 1 << t
                elif match[row] not in taken:
                    hit[row] |= 1 << t
                    taken.add(match[row])
        rows = np.flatnonzero(case["found_label"] == label)[order]
        parts.append((found.image[order], np.full(len(order), label), found.scores[order], hit, ignored, rows))
    image, label, score, hit, ignored, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
    every = (np.broadcast_to(values, (len(AREAS), len(image))) for values in (hit, ignored))
    counted = ~case["ignore"]
    objects = case["image"][counted], case["label"][counted], np.full(counted.sum(), 15, dtype=np.uint8)
    return Matches(image, label, score, *every, rows, *objects)  # type: ignore[arg-type]


def _voc_class(case: Case, label: int) -> tuple[Objects, ClassDetections]:
    a, b = case["label"] == label, case["found_label"] == label
    objects = Objects(case["image"][a], case["boxes"][a], case["ignore"][a])
    return objects, ClassDetections(case["found_image"][b], case["score"][b], case["found_boxes"][b])


def coco_evaluation(case: Case, images: int) -> COCOeval:
    """pycocotools' evaluation, accumulated."""
    annotations = [
        {"id": n, "image_id": int(image), "category_id": int(label), "bbox": _xywh(box), "iscrowd": int(crowd)}
        for n, (image, label, box, crowd) in enumerate(_rows(case, "image", "label", "boxes", "ignore"), start=1)
    ]
    found = [
        {"image_id": int(image), "category_id": int(label), "bbox": _xywh(box), "score": float(score)}
        for image, label, box, score in _rows(case, "found_image", "found_label", "found_boxes", "score")
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": n} for n in range(images)],
            "categories": [{"id": n} for n in range(CLASSES)],
            "annotations": [{**one, "area": one["bbox"][2] * one["bbox"][3]} for one in annotations],
            "info": {},
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def coco_percent(evaluation: COCOeval, area: int = 0, label: int | None = None) -> dict[str, float]:
    """AP, AP50, AP75 of pycocotools in per cent, as `summarize` computes them; NaN without objects."""
    precision = evaluation.eval["precision"][..., area, 2]
    if label is not None:
        precision = precision[:, :, label]
    parts = {"AP": precision, "AP50": precision[:1], "AP75": precision[5:6]}
    return {name: float(np.mean(p[p > -1]) * 100) if (p > -1).any() else np.nan for name, p in parts.items()}


def coco_matches(case: Case, images: int) -> Matches:
    """Matches from pycocotools' own, in its order."""
    evaluation = coco_evaluation(case, images)
    count = len(evaluation.params.areaRng)
    columns: dict[str, list[Any]] = {key: [] for key in ("image", "label", "score", "hit", "ignored")}
    bits = 1 << np.arange(len(THRESHOLDS), dtype=np.uint16)[:, None]
    for label in range(CLASSES):
        parts = []
        for image in range(images):
            found = [evaluation.evalImgs[(label * count + area) * images + image] for area in range(count)]
            if found[0] is not None and found[0]["dtScores"]:
                hits = [(((one["dtMatches"] > 0) & ~one["dtIgnore"].astype(bool)) * bits).sum(0) for one in found]
                ignored = [(one["dtIgnore"].astype(bool) * bits).sum(0) for one in found]
                parts.append((image, np.array(found[0]["dtScores"]), np.array(hits), np.array(ignored)))
        score = np.concatenate([part[1] for part in parts])
        order = np.argsort(-score, kind="mergesort")
        columns["image"].append(np.repeat([part[0] for part in parts], [len(part[1]) for part in parts])[order])
        columns["label"].append(np.full(len(order), label))
        columns["score"].append(score[order])
        for key, at in (("hit", 2), ("ignored", 3)):
            columns[key].append(np.concatenate([part[at] for part in parts], axis=1)[:, order].astype(np.uint16))
    joined = [np.concatenate(columns[key], axis=-1) for key in columns]
    counted = ~case["ignore"]
    sizes = np.prod(case["boxes"][counted, 2:] - case["boxes"][counted, :2], axis=1)
    ranges = evaluation.params.areaRng
    area = sum(((low <= sizes) & (sizes <= high)).astype(np.uint8) << a for a, (low, high) in enumerate(ranges))
    rows = np.arange(len(joined[0]))
    return Matches(*joined, rows, case["image"][counted], case["label"][counted], area)  # type: ignore[arg-type]


def _xywh(box: NDArray[np.float64]) -> list[float]:
    return [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]


def _rows(case: Case, *keys: str) -> Any:
    return zip(*(case[key] for key in keys), strict=True)
