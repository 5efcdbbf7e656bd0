"""The evaluator of a test split by name, and what a result keeps of its answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator

from transfer.evaluation.coco import HotCOCOEvaluator
from transfer.evaluation.once import EachImageOnce
from transfer.evaluation.voc import VOCEvaluator
from transfer.tasks.task import Dataset

KEPT = ("AP", "AP50", "AP75")


def build_evaluator(name: str, dataset: Dataset, catalogue: str, masks: bool) -> DatasetEvaluator:
    """Make an evaluator that refuses to see an image twice or not at all.

    Args:
        name: `exact` or `detectron2` for VOC; `hotcoco` or `pycocotools` for COCO.
        dataset: the test split.
        catalogue: its name in Detectron2's MetadataCatalog.
        masks: COCO: measure masks beside boxes.
    """
    return EachImageOnce(_evaluator(name, dataset, catalogue, masks), dataset)


def _evaluator(name: str, dataset: Dataset, catalogue: str, masks: bool) -> DatasetEvaluator:
    if name == "exact":
        return VOCEvaluator(dataset)
    if name == "detectron2":
        return PascalVOCDetectionEvaluator(catalogue)
    if name == "hotcoco":
        return HotCOCOEvaluator(dataset, masks)
    if name == "pycocotools":
        tasks = ("bbox", "segm") if masks else ("bbox",)
        return COCOEvaluator(catalogue, tasks=tasks, use_fast_impl=False)
    raise ValueError(f"no evaluator is called {name}")


def metrics_of(results: Mapping[str, Mapping[str, float]], dataset: Dataset) -> dict[str, Any]:
    """A result's `metrics` from an evaluator's answer; a value that cannot be computed is None.

    Returns:
        `{"bbox": {"AP", "AP50", "AP75", "per_class": {name: AP}}, "segm": the same, where there are masks}`, in
        per cent.
    """
    # Detectron2 gives COCO NaN where a detector found nothing at all; what finds nothing has an AP of 0.
    nothing = 0.0 if dataset.split.layout == "coco" else None
    return {kind: _kept(values, dataset.classes, nothing) for kind, values in results.items()}


def _kept(values: Mapping[str, float], classes: tuple[str, ...], nothing: float | None) -> dict[str, Any]:
    each = {name: _finite(values[f"AP-{name}"]) for name in classes if f"AP-{name}" in values}
    if len(classes) == 1:
        each = {classes[0]: _finite(values["AP"], nothing)}
    return {**{key: _finite(values[key], nothing) for key in KEPT}, "per_class": each}


def _finite(value: float, otherwise: float | None = None) -> float | None:
    return float(value) if math.isfinite(value) else otherwise
