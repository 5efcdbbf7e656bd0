"""What `make bench` measures of transfer, each beside its peer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, Instances

from common.environment import ROOT
from common.measure import Comparison
from transfer.engine.data import catalogue
from transfer.evaluation.voc import VOCEvaluator
from transfer.tasks.classes import VOC
from transfer.tasks.splits import Split
from transfer.tasks.task import Dataset, read

Found = list[tuple[dict[str, Any], dict[str, Any]]]


def comparisons(folder: Path) -> Iterator[Comparison]:
    """All of them; `folder` is a scratch folder."""
    yield voc_evaluation(folder / "VOC2007")
    yield cold_plan()


def voc_evaluation(folder: Path, images: int = 400, detections: int = 60) -> Comparison:
    """VOC07's metric from detections in memory; the peer reads each annotation's XML, as it always does."""
    dataset = _random_set(folder, images)
    found = _random_detections(dataset, detections)

    def run(evaluator: DatasetEvaluator) -> Callable[[], dict[str, float]]:
        def evaluate() -> dict[str, float]:
            evaluator.reset()
            for image, output in found:
                evaluator.process([image], [output])
            return dict(evaluator.evaluate()["bbox"])

        return evaluate

    ours, theirs = run(VOCEvaluator(dataset)), run(PascalVOCDetectionEvaluator(catalogue(dataset)))

    def equal() -> str:
        mine, peers = ours(), theirs()
        gap = max(abs(mine[key] - peers[key]) for key in ("AP", "AP50", "AP75"))
        assert gap <= 1e-9, f"the digits differ by {gap}"
        return f"AP {mine['AP']:.4f}: max |Δ| {gap:.0e}"

    what = f"VOC07 metric, {images} images × {detections} boxes"
    return Comparison(what, "Detectron2's PascalVOCDetectionEvaluator", ours, theirs, equal, images, "images")


def _random_set(folder: Path, images: int) -> Dataset:
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
    return read(Split("bench", "voc", folder, "test", year=2007), VOC)


def _random_object(rng: np.random.Generator) -> str:
    x, y, w, h = rng.integers(1, 300), rng.integers(1, 200), rng.integers(20, 200), rng.integers(20, 170)
    box = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
    flags = f"<pose>Left</pose><truncated>0</truncated><difficult>{int(rng.random() < 0.1)}</difficult>"
    return f"<object><name>{rng.choice(VOC)}</name>{flags}<bndbox>{box}</bndbox></object>"


def _random_detections(dataset: Dataset, count: int) -> Found:
    rng = np.random.default_rng(1)
    return [
        ({"image_id": record.image_id}, {"instances": _instances(record, count, rng)}) for record in dataset.records
    ]


def _instances(record: Any, count: int, rng: np.random.Generator) -> Instances:
    near = np.array([thing.box for thing in record.things]) + rng.normal(0, 5, (len(record.things), 4))
    corner = rng.uniform(0, 250, (count - len(near), 2))
    far = np.concatenate([corner, corner + rng.uniform(10, 120, corner.shape)], axis=1)
    labels = [thing.label for thing in record.things] + list(rng.integers(0, len(VOC), len(far)))
    instances = Instances((375, 500))
    instances.pred_boxes = Boxes(torch.tensor(np.concatenate([near, far]), dtype=torch.float32))
    instances.scores = torch.tensor(rng.random(count), dtype=torch.float32)
    instances.pred_classes = torch.tensor(labels, dtype=torch.int64)
    return instances


def cold_plan() -> Comparison:
    """`launch.py plan` from a cold start, beside the start of a Python that imports torch to do the same."""
    command = [sys.executable, str(ROOT / "tools" / "launch.py"), "plan", str(ROOT / "configs/experiments/demo.yaml")]

    def run(words: list[str]) -> Callable[[], str]:
        return lambda: subprocess.run(words, check=True, capture_output=True, text=True).stdout

    def equal() -> str:
        first, second = run(command)(), run(command)()
        assert first == second and "finetune.scratch.voc07.s1" in first
        return "same plan twice"

    torch_start = [sys.executable, "-c", "import torch"]
    return Comparison(
        "launch.py plan, cold", "python -c 'import torch'", run(command), run(torch_start), equal, 1, "starts"
    )
