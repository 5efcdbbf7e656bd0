"""Random detections over COCO annotations, and both evaluators' answers to them."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from transfer.engine.detection_data import register_metadata
from transfer.evaluation.coco_evaluator import HotCOCOEvaluator
from transfer.tasks.datasets import Split
from transfer.tasks.task import Dataset, read_split

Batches = list[tuple[dict[str, Any], dict[str, Any]]]
KINDS = ("bbox", "segm")


def made_annotations(folder: Path, rng: np.random.Generator, images: int = 12, classes: int = 4) -> Dataset:
    """A COCO set: crowds as RLE, polygons, objects of all three sizes, empty images, a class without objects."""
    folder.mkdir(parents=True, exist_ok=True)
    entries, annotations = [], []
    for image in rng.permutation(images).tolist():
        height, width = int(rng.integers(100, 160)), int(rng.integers(100, 160))
        entries.append({"id": image + 1, "file_name": f"{image}.jpg", "height": height, "width": width})
        (folder / f"{image}.jpg").touch()
        for _ in range(rng.choice([0, 0, 1, 2, 5])):
            annotations.append(_object(rng, len(annotations) + 1, image + 1, height, width, classes))
    names = [{"id": 3 * label + 1, "name": f"c{label}"} for label in range(classes)]
    if not annotations:
        first = next(entry for entry in entries if entry["id"] == 1)
        annotations.append(_object(rng, 1, 1, first["height"], first["width"], classes))
    content = {"info": {}, "images": entries, "annotations": annotations}
    file = folder / "instances.json"
    file.write_text(json.dumps({**content, "categories": names}))
    split = Split("made_coco", "coco", folder, annotations=file)
    return read_split(split, [name["name"] for name in names])


def _object(rng: np.random.Generator, number: int, image: int, height: int, width: int, classes: int) -> dict[str, Any]:
    w, h = np.minimum(np.exp(rng.uniform(1.5, 5, 2)), [width * 0.9, height * 0.9])
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    box = np.round([x, y, w, h], 2).tolist()
    x, y, w, h = box
    segmentation: Any = [[x, y, x + w, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h]]
    crowd = int(rng.random() < 0.15)
    if crowd:
        mask = np.zeros((height, width), dtype=bool)
        mask[int(y) : int(y + h) + 1, int(x) : int(x + w) + 1] = True
        segmentation = {"size": [height, width], "counts": _counts(mask)}
    category = 3 * int(rng.integers(classes - 1)) + 1  # the last class has no object
    return {
        "id": number, "image_id": image, "category_id": category, "iscrowd": crowd, "bbox": box,
        "area": round(w * h * 0.9, 2), "segmentation": segmentation,
    }  # fmt: skip


def _counts(mask: np.ndarray) -> list[int]:
    flat = mask.T.reshape(-1)
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *ends, len(flat)]).tolist()
    return [0, *runs] if flat[0] else runs


def detections(dataset: Dataset, rng: np.random.Generator, most: int, decimals: int, masks: bool = True) -> Batches:
    """Detections near the objects and elsewhere; few decimals make many equal scores, some images get none."""
    found: Batches = []
    for record in dataset.records:
        boxes, labels = [], []
        for thing in record.annotations:
            for _ in range(rng.integers(3)):
                x, y, w, h = np.array(thing.box) + rng.normal(0, rng.choice([0.3, 2, 6]), 4)
                boxes.append([x, y, x + abs(w), y + abs(h)])
                labels.append(thing.label if rng.random() < 0.9 else int(rng.integers(len(dataset.classes))))
        for _ in range(rng.integers(most + 1)):
            x, y = rng.uniform(0, record.width - 2), rng.uniform(0, record.height - 2)
            boxes.append([x, y, rng.uniform(x, record.width), rng.uniform(y, record.height)])
            labels.append(int(rng.integers(len(dataset.classes))))
        keep = rng.random() > 0.1
        found.append(_answer(record, boxes if keep else [], labels if keep else [], rng, decimals, masks))
    return found


def _answer(
    record: Any, boxes: list[Any], labels: list[int], rng: np.random.Generator, decimals: int, masks: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    instances = Instances((record.height, record.width))
    corners = torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32)
    instances.pred_boxes = Boxes(corners)
    instances.scores = torch.tensor(rng.random(len(boxes)).round(decimals), dtype=torch.float32)
    instances.pred_classes = torch.tensor(labels, dtype=torch.int64)
    if masks:
        instances.pred_masks = _ellipses(corners, record.height, record.width, rng)
    return {"image_id": record.image_id}, {"instances": instances}


def _ellipses(corners: torch.Tensor, height: int, width: int, rng: np.random.Generator) -> torch.Tensor:
    """(N, H, W) bool: an ellipse, or the whole box, in each box; some are empty."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    x0, y0, x1, y1 = (side[:, None, None] for side in corners.T)
    across = ((x - (x0 + x1) / 2) / (x1 - x0).clamp(min=0.1)).abs()
    down = ((y - (y0 + y1) / 2) / (y1 - y0).clamp(min=0.1)).abs()
    square = torch.tensor(rng.random(len(corners)) < 0.5)[:, None, None]
    return torch.where(square, torch.maximum(across, down) < 0.5, across**2 + down**2 < 0.25)


def ours(dataset: Dataset, found: Batches, masks: bool = True) -> dict[str, dict[str, float]]:
    """hotcoco's answer."""
    return dict(answer(HotCOCOEvaluator(dataset, masks), found) or {})


def theirs(dataset: Dataset, found: Batches, masks: bool = True) -> dict[str, dict[str, float]]:
    """Detectron2's and pycocotools' answer."""
    kinds = KINDS if masks else KINDS[:1]
    with contextlib.redirect_stdout(io.StringIO()):
        return dict(answer(COCOEvaluator(register_metadata(dataset), tasks=kinds, use_fast_impl=False), found) or {})


def answer(evaluator: Any, found: Batches) -> Any:
    """What an evaluator says of all batches."""
    evaluator.reset()
    for image, output in found:
        evaluator.process([image], [output])
    return evaluator.evaluate()


def part(dataset: Dataset, images: Sequence[int], folder: Path) -> Dataset:
    """Some images of a set as a set of its own, with an annotation file of its own."""
    assert dataset.split.annotations is not None
    content = json.loads(dataset.split.annotations.read_text())
    records = [dataset.records[index] for index in images]
    ids = {record.image_id for record in records}
    content["images"] = [image for image in content["images"] if image["id"] in ids]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in ids]
    file = folder / "part.json"
    file.write_text(json.dumps(content))
    return replace(dataset, records=records, split=replace(dataset.split, annotations=file))
