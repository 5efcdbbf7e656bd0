"""The evaluator of a test split by name, the guard around it, and the metrics that a result contains."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.utils import comm

from transfer.evaluation.coco_evaluator import HotCOCOEvaluator
from transfer.evaluation.voc_evaluator import VOCEvaluator
from transfer.tasks.task import Dataset

METRICS = ("AP", "AP50", "AP75")


def build_evaluator(name: str, dataset: Dataset, catalog_name: str, masks: bool) -> DatasetEvaluator:
    """Build an evaluator that requires each image exactly once.

    Args:
        name: `exact` or `detectron2` for VOC; `hotcoco` or `pycocotools` for COCO.
        dataset: the test split.
        catalog_name: its name in Detectron2's MetadataCatalog.
        masks: COCO: evaluate masks besides boxes.
    """
    return EachImageOnce(_evaluator(name, dataset, catalog_name, masks), dataset)


def _evaluator(name: str, dataset: Dataset, catalog_name: str, masks: bool) -> DatasetEvaluator:
    if name == "exact":
        return VOCEvaluator(dataset)
    if name == "detectron2":
        return PascalVOCDetectionEvaluator(catalog_name)
    if name == "hotcoco":
        return HotCOCOEvaluator(dataset, masks)
    if name == "pycocotools":
        tasks = ("bbox", "segm") if masks else ("bbox",)
        return COCOEvaluator(catalog_name, tasks=tasks, use_fast_impl=False)
    raise ValueError(f"no evaluator is called {name}")


def metrics_of(results: Mapping[str, Mapping[str, float]], dataset: Dataset) -> dict[str, Any]:
    """A result's `metrics` from an evaluator's results; a value that cannot be computed is None.

    Returns:
        `{"bbox": {"AP", "AP50", "AP75", "per_class": {name: AP}}, "segm": the same, where there are masks}`, in
        per cent.
    """
    # For COCO Detectron2 returns NaN where a detector found nothing at all; its AP is 0.
    nothing = 0.0 if dataset.split.layout == "coco" else None
    return {kind: _metrics(values, dataset.classes, nothing) for kind, values in results.items()}


def _metrics(values: Mapping[str, float], classes: tuple[str, ...], nothing: float | None) -> dict[str, Any]:
    each = {name: _finite(values[f"AP-{name}"]) for name in classes if f"AP-{name}" in values}
    if len(classes) == 1:
        each = {classes[0]: _finite(values["AP"], nothing)}
    return {**{key: _finite(values[key], nothing) for key in METRICS}, "per_class": each}


def _finite(value: float, otherwise: float | None = None) -> float | None:
    return float(value) if math.isfinite(value) else otherwise


class EachImageOnce(DatasetEvaluator):
    """Raises when an image was evaluated twice (a padded sampler), not at all, or is not in the split.

    Detectron2's evaluators do not check: a repeated image adds false positives, a lost one false negatives.

    Args:
        evaluator: computes the metric.
        dataset: the test split.
    """

    def __init__(self, evaluator: DatasetEvaluator, dataset: Dataset) -> None:
        self.evaluator = evaluator
        self.expected = [record.image_id for record in dataset.records]
        self.seen: list[Any] = []

    def reset(self) -> None:
        """Forget all images."""
        self.seen = []
        self.evaluator.reset()

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Add one batch."""
        self.seen += [image["image_id"] for image in inputs]
        self.evaluator.process(inputs, outputs)

    def evaluate(self) -> Any:
        """The evaluator's results.

        Raises:
            RuntimeError: on every rank, unless the images are the split's, each once.
        """
        # All ranks raise, so that none waits for one that has left.
        check_each_once([image for rank in comm.all_gather(self.seen) for image in rank], self.expected)
        return self.evaluator.evaluate()


def check_each_once(seen: Iterable[Any], expected: Iterable[Any]) -> None:
    """Compare the evaluated images with those of the split.

    Raises:
        RuntimeError: names the first image that is wrong.
    """
    counts, wanted = Counter(seen), set(expected)
    for image, times in counts.items():
        if image not in wanted:
            raise RuntimeError(f"image {image!r} was measured, but the test split does not list it")
        if times > 1:
            raise RuntimeError(f"image {image!r} was measured {times} times; each test image must come exactly once")
    missing = wanted - counts.keys()
    if missing:
        raise RuntimeError(f"{len(missing)} test images were not measured, {min(missing)!r} among them")
