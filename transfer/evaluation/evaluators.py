"""The evaluator of a test split by name, the guard around it, and the metrics that a result contains."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

from ssl_transfer.errors import UserError
from transfer.evaluation.coco_evaluator import HotCOCOEvaluator
from transfer.evaluation.collect import DetectionCollector
from transfer.evaluation.matching import match
from transfer.evaluation.voc_evaluator import VOCEvaluator
from transfer.tasks.task import Dataset, ground_truth

METRICS = ("AP", "AP50", "AP75")
VOC_LIST = "records"


def build_evaluator(name: str, dataset: Dataset, catalog_name: str, masks: bool) -> EachImageOnce:
    """Build an evaluator that requires each image exactly once; all of them measure by the records alone.

    Args:
        name: `exact` or `detectron2` for VOC; `hotcoco` or `pycocotools` for COCO.
        dataset: the test split.
        catalog_name: its name in Detectron2's MetadataCatalog.
        masks: COCO: evaluate masks besides boxes.
    """
    return EachImageOnce(_evaluator(name, dataset, catalog_name, masks), dataset, masks)


def rehearse_evaluation(name: str, dataset: Dataset, catalog_name: str, masks: bool) -> None:
    """Measure a single detection before the first step: a metric that fails must not fail after the training.

    Args:
        name, dataset, catalog_name, masks: as `build_evaluator`.

    Raises:
        UserError: the evaluator cannot measure this split.
    """
    record = max(dataset.records, key=lambda one: str(one.image_id).count(" "))
    found = Instances((record.height, record.width))
    found.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, record.width, record.height]]))
    found.scores, found.pred_classes = torch.tensor([0.5]), torch.tensor([0])
    found.pred_masks = torch.ones((1, record.height, record.width), dtype=torch.bool)
    try:
        with silence():
            evaluator = _evaluator(name, dataset, catalog_name, masks)
            evaluator.reset()
            evaluator.process([{"image_id": record.image_id}], [{"instances": found}])
            evaluator.evaluate()
            collector = DetectionCollector(dataset, masks)
            collector.add(record.image_id, found)
            detections = collector.gather()
            if detections is not None:
                match(dataset, detections)
    except UserError:
        raise
    except Exception as error:  # Detectron2, hotcoco and pycocotools raise exceptions of many types
        why = " ".join(f"{type(error).__name__}: {error}".split())
        where = dataset.split.annotations or dataset.split.folder
        raise UserError(f"{where}: the evaluator {name} fails on {dataset.split.name} ({why})") from error


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep an evaluator from printing and logging."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _evaluator(name: str, dataset: Dataset, catalog_name: str, masks: bool) -> DatasetEvaluator:
    if name == "exact":
        return VOCEvaluator(dataset)
    if name == "detectron2":
        return _voc_reference(dataset, catalog_name)
    if name == "hotcoco":
        return HotCOCOEvaluator(dataset, masks)
    if name == "pycocotools":
        tasks = ("bbox", "segm") if masks else ("bbox",)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "annotations.json"
            file.write_text(json.dumps(ground_truth(dataset)))
            catalog_name = _catalog_copy(catalog_name, json_file=str(file))
            return COCOEvaluator(catalog_name, tasks=tasks, use_fast_impl=False)
    raise ValueError(f"no evaluator is called {name}")


def _voc_reference(dataset: Dataset, catalog_name: str) -> DatasetEvaluator:
    """Detectron2's evaluator; it reads XML files, and of a user's own split such that hold what was read."""
    if dataset.split.strict:
        return PascalVOCDetectionEvaluator(catalog_name)
    folder = tempfile.TemporaryDirectory()
    write_voc(dataset, Path(folder.name))
    evaluator = PascalVOCDetectionEvaluator(_catalog_copy(catalog_name, dirname=folder.name, split=VOC_LIST))
    evaluator.folder = folder  # removed with the evaluator
    return evaluator


def write_voc(dataset: Dataset, root: Path) -> None:
    """Write a split's records as the XML files and the list that Detectron2's evaluator reads."""
    ids = "".join(f"{record.image_id}\n" for record in dataset.records)
    files = {root / "ImageSets" / "Main" / f"{VOC_LIST}.txt": ids}
    for record in dataset.records:
        things = []
        for one in record.annotations:
            sides = zip(("xmin", "ymin", "xmax", "ymax"), one.box, strict=True)
            box = "".join(f"<{key}>{round(side)}</{key}>" for key, side in sides)
            flags = f"<pose/><truncated>0</truncated><difficult>{int(one.difficult)}</difficult>"
            name = escape(dataset.classes[one.label])
            things.append(f"<object><name>{name}</name>{flags}<bndbox>{box}</bndbox></object>")
        files[root / "Annotations" / f"{record.image_id}.xml"] = f"<annotation>{''.join(things)}</annotation>"
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def _catalog_copy(name: str, **changes: str) -> str:
    """A copy of an entry of Detectron2's catalog that differs in these values; its entries cannot be changed."""
    copy = f"{name}:records"
    if copy in MetadataCatalog:
        MetadataCatalog.remove(copy)
    MetadataCatalog.get(copy).set(**{**MetadataCatalog.get(name).as_dict(), "name": copy, **changes})
    return copy


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
        masks: keep masks besides boxes.

    Attributes:
        collector: has all detections that the metric was computed of.
    """

    def __init__(self, evaluator: DatasetEvaluator, dataset: Dataset, masks: bool) -> None:
        self.evaluator = evaluator
        self.collector = DetectionCollector(dataset, masks)
        self.expected = [record.image_id for record in dataset.records]
        self.seen: list[Any] = []

    def reset(self) -> None:
        """Forget all images."""
        self.seen = []
        self.collector.reset()
        self.evaluator.reset()

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Add one batch."""
        self.seen += [image["image_id"] for image in inputs]
        self.evaluator.process(inputs, outputs)
        hotcoco = self.evaluator.found[-len(inputs) :] if isinstance(self.evaluator, HotCOCOEvaluator) else ()
        for index, (image, output) in enumerate(zip(inputs, outputs, strict=True)):
            self.collector.add(image["image_id"], output["instances"], hotcoco[index].masks if hotcoco else None)

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
