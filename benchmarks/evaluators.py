"""Benchmarks of the VOC and COCO metrics and of the planner, each against its peer."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator, pascal_voc_evaluation
from detectron2.structures import Boxes, Instances

from benchmarks.paired import PairedBenchmark
from ssl_transfer.environment import ROOT
from transfer.engine.detection_data import register_metadata
from transfer.evaluation.coco_evaluator import HotCOCOEvaluator
from transfer.evaluation.voc_evaluator import VOCEvaluator
from transfer.tasks.classes import COCO, VOC
from transfer.tasks.datasets import DatasetDict, Split
from transfer.tasks.task import Dataset, read_split

Found = list[tuple[dict[str, Any], dict[str, Any]]]


def benchmarks(folder: Path) -> Iterator[PairedBenchmark]:
    """The evaluators; `folder` is a scratch folder."""
    yield from voc_evaluation(folder / "VOC2007")
    yield coco_evaluation(folder / "coco", "bbox", images=400, detections=100)
    yield coco_evaluation(folder / "coco_masks", "segm", images=100, detections=50)


def voc_evaluation(folder: Path, images: int = 400, detections: int = 60) -> Iterator[PairedBenchmark]:
    """Compute VOC07's metric of detections in memory, without and with reading the annotations."""
    dataset = random_set(folder, images)
    found = random_detections(dataset, detections)

    def ours() -> dict[str, float]:
        return _answer(VOCEvaluator(dataset), found)["bbox"]

    def theirs() -> dict[str, float]:  # it caches parsed files
        return _answer(PascalVOCDetectionEvaluator(register_metadata(dataset)), found)["bbox"]

    def ours_reading() -> dict[str, float]:
        return _answer(VOCEvaluator(read_split(dataset.split, VOC)), found)["bbox"]

    def theirs_reading() -> dict[str, float]:
        pascal_voc_evaluation.parse_rec.cache_clear()
        return theirs()

    peer = "Detectron2's PascalVOCDetectionEvaluator"
    for how, mine, its in (("XML parsed before", ours, theirs), ("parsing the XML", ours_reading, theirs_reading)):
        what = f"VOC07 metric, {images} images × {detections} boxes, {how}"
        yield PairedBenchmark(what, peer, mine, its, _equality(mine, its), images, "images")


def coco_evaluation(folder: Path, kind: str, images: int, detections: int) -> PairedBenchmark:
    """Compute COCO's metric: read the annotation file, process detections (encode masks), evaluate.

    Args:
        folder: where the annotation file is written.
        kind: `bbox`; or `segm`, which measures boxes and masks as a trial does.
        images, detections: how many images, and detections in each.
    """
    dataset = random_coco(folder, images)
    found = random_coco_detections(dataset, detections, masks=kind == "segm")

    def ours() -> dict[str, float]:
        return _answer(HotCOCOEvaluator(dataset, masks=kind == "segm"), found)[kind]

    def theirs() -> dict[str, float]:
        kinds = ("bbox", "segm") if kind == "segm" else ("bbox",)
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
            return _answer(COCOEvaluator(register_metadata(dataset), tasks=kinds, use_fast_impl=False), found)[kind]

    what = f"COCO {'boxes and masks' if kind == 'segm' else 'boxes'}, {images} images × {detections}, whole call"
    peer = "Detectron2's COCOEvaluator with pycocotools"
    return PairedBenchmark(what, peer, ours, theirs, _equality(ours, theirs), images, "images")


def _answer(evaluator: DatasetEvaluator, found: Found) -> Any:
    evaluator.reset()
    for image, output in found:
        evaluator.process([image], [output])
    return evaluator.evaluate()


def _equality(ours: Callable[[], dict[str, float]], theirs: Callable[[], dict[str, float]]) -> Callable[[], str]:
    def equal() -> str:
        mine, peers = ours(), theirs()
        gap = max((abs(mine[key] - peers[key]) for key in peers if not np.isnan(peers[key])), default=0.0)
        assert gap <= 1e-9 and all(np.isnan(mine[key]) for key in peers if np.isnan(peers[key])), f"{mine} {peers}"
        return f"AP {mine['AP']:.4f}: max |Δ| {gap:.0e}"

    return equal


def random_coco(folder: Path, images: int) -> Dataset:
    """Write a COCO set of 640 × 480 images with 7 rhombus-shaped objects each on average."""
    rng, (width, height) = np.random.default_rng(0), (640, 480)
    folder.mkdir(parents=True)
    annotations: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        (folder / f"{image}.jpg").touch()
        for _ in range(rng.integers(15)):
            w, h = np.exp(rng.uniform(2.5, 6, 2)).clip(max=[width * 0.9, height * 0.9])
            x, y = rng.uniform(0, [width - w, height - h])
            x, y, w, h = np.round([x, y, w, h], 2).tolist()
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": int(rng.integers(1, 81))}
            polygon = [x, y + h / 2, x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h]
            shape = {"bbox": [x, y, w, h], "area": w * h / 2, "segmentation": [polygon]}
            annotations.append({**entry, **shape, "iscrowd": 0})
    content = {
        "images": [{"id": i, "width": width, "height": height, "file_name": f"{i}.jpg"} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": label, "name": name} for label, name in enumerate(COCO, start=1)],
        "info": {},
    }
    file = folder / "instances.json"
    file.write_text(json.dumps(content))
    return read_split(Split("bench_coco", "coco", folder, annotations=file), COCO)


def random_coco_detections(dataset: Dataset, count: int, masks: bool) -> Found:
    """Detections near the objects and elsewhere; the masks of ten images are reused, because they are large."""
    rng = np.random.default_rng(1)
    found: Found = []
    kept: list[tuple[Boxes, torch.Tensor]] = []
    for record in dataset.records:
        instances = _coco_instances(record, count, rng)
        if masks:
            if len(kept) < 10:
                kept.append((instances.pred_boxes, _ellipses(instances)))
            instances.pred_boxes, instances.pred_masks = kept[len(found) % len(kept)]
        found.append(({"image_id": record.image_id}, {"instances": instances}))
    return found


def _coco_instances(record: DatasetDict, count: int, rng: np.random.Generator) -> Instances:
    near = np.array([thing.box for thing in record.annotations]).reshape(-1, 4).repeat(2, axis=0)[:count]
    labels = np.array([thing.label for thing in record.annotations], dtype=np.int64).repeat(2)[:count]
    near = near + rng.normal(0, 0.08, near.shape) * near[:, [2, 3, 2, 3]]
    corner = rng.uniform(0, [400, 300], (count - len(near), 2))
    boxes = np.concatenate([near, np.concatenate([corner, np.exp(rng.uniform(2.5, 5, corner.shape))], axis=1)])
    boxes[:, 2:] += boxes[:, :2]
    instances = Instances((record.height, record.width))
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    instances.scores = torch.tensor(rng.random(count), dtype=torch.float32)
    others = rng.integers(0, len(COCO), count - len(labels))
    instances.pred_classes = torch.tensor(np.concatenate([labels, others]))
    return instances


def _ellipses(instances: Instances) -> torch.Tensor:
    y, x = torch.meshgrid(*(torch.arange(side) for side in instances.image_size), indexing="ij")
    each = [
        ((x - (x0 + x1) / 2) / (x1 - x0)) ** 2 + ((y - (y0 + y1) / 2) / (y1 - y0)) ** 2 < 0.25
        for x0, y0, x1, y1 in instances.pred_boxes.tensor.tolist()
    ]
    return torch.stack(each)


def random_set(folder: Path, images: int) -> Dataset:
    """Write a VOC2007 split with 1 to 5 objects per image, a tenth of them difficult."""
    rng = np.random.default_rng(0)
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    names = [f"{number:06d}" for number in range(images)]
    (folder / "ImageSets/Main/test.txt").write_text("\n".join(names) + "\n")
    for name in names:
        (folder / f"JPEGImages/{name}.jpg").touch()
        size = "<size><width>500</width><height>375</height></size>"
        things = "".join(_random_object(rng) for _ in range(rng.integers(1, 6)))
        (folder / f"Annotations/{name}.xml").write_text(f"<annotation>{size}{things}</annotation>")
    return read_split(Split("bench", "voc", folder, "test", year=2007), VOC)


def _random_object(rng: np.random.Generator) -> str:
    x, y, w, h = rng.integers(1, 300), rng.integers(1, 200), rng.integers(20, 200), rng.integers(20, 170)
    box = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
    flags = f"<pose>Left</pose><truncated>0</truncated><difficult>{int(rng.random() < 0.1)}</difficult>"
    return f"<object><name>{rng.choice(VOC)}</name>{flags}<bndbox>{box}</bndbox></object>"


def random_detections(dataset: Dataset, count: int) -> Found:
    """`count` detections per image: one near each object, the others anywhere."""
    rng = np.random.default_rng(1)
    return [
        ({"image_id": record.image_id}, {"instances": _instances(record, count, rng)}) for record in dataset.records
    ]


def _instances(record: Any, count: int, rng: np.random.Generator) -> Instances:
    near = np.array([thing.box for thing in record.annotations]) + rng.normal(0, 5, (len(record.annotations), 4))
    corner = rng.uniform(0, 250, (count - len(near), 2))
    far = np.concatenate([corner, corner + rng.uniform(10, 120, corner.shape)], axis=1)
    labels = [thing.label for thing in record.annotations] + list(rng.integers(0, len(VOC), len(far)))
    instances = Instances((375, 500))
    instances.pred_boxes = Boxes(torch.tensor(np.concatenate([near, far]), dtype=torch.float32))
    instances.scores = torch.tensor(rng.random(count), dtype=torch.float32)
    instances.pred_classes = torch.tensor(labels, dtype=torch.int64)
    return instances


def cold_plan() -> PairedBenchmark:
    """Time `launch.py plan` from a cold start against the start of a Python that imports torch."""
    command = [sys.executable, str(ROOT / "tools" / "launch.py"), "plan", str(ROOT / "configs/experiments/demo.yaml")]

    def run(words: list[str]) -> Callable[[], str]:
        return lambda: subprocess.run(words, check=True, capture_output=True, text=True).stdout

    def equal() -> str:
        first, second = run(command)(), run(command)()
        assert first == second and "finetune.scratch.voc07.s1" in first
        return "same plan twice"

    torch_start = [sys.executable, "-c", "import torch"]
    return PairedBenchmark(
        "launch.py plan, cold", "python -c 'import torch'", run(command), run(torch_start), equal, 1, "starts"
    )
