"""PASCAL VOC's evaluator: AP, AP50, AP75 and each class's AP from the detections of all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from numpy.typing import NDArray

from ssl_transfer.formats.detections import THRESHOLDS
from transfer.evaluation.voc_metric import ClassDetections, average_precisions, objects_by_class, rounded
from transfer.tasks.task import Dataset


class VOCEvaluator(DatasetEvaluator):
    """Detectron2's `PascalVOCDetectionEvaluator`, digit for digit, from records in memory.

    Args:
        dataset: the test split; its class list is used.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.classes = dataset.classes
        self.points_11 = dataset.split.year == 2007
        self.image_index = {record.image_id: index for index, record in enumerate(dataset.records)}
        self.objects = objects_by_class(dataset)
        self.reset()

    def reset(self) -> None:
        """Forget all detections."""
        self.found: list[tuple[int, NDArray[Any], NDArray[Any], NDArray[Any]]] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Add one batch's detections."""
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            boxes = instances.pred_boxes.tensor.numpy().astype(np.float32)
            boxes[:, :2] += 1  # in float32, as in Detectron2
            scores, classes = instances.scores.numpy().astype(np.float32), instances.pred_classes.numpy()
            self.found.append((self.image_index[image["image_id"]], rounded(scores, 3), rounded(boxes, 1), classes))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """The metric over all ranks' detections.

        Returns:
            On rank 0 `{"bbox": {"AP", "AP50", "AP75", "AP-<class>", …}}` in per cent; None elsewhere.
        """
        gathered = comm.gather(self.found, dst=0)
        if not comm.is_main_process():
            return None
        by_class = detections_by_class([image for rank in gathered for image in rank], len(self.classes))
        pairs = zip(self.objects, by_class, strict=True)
        aps = np.array([average_precisions(objects, found, self.points_11) * 100 for objects, found in pairs])
        return {"bbox": summarize(aps, self.classes)}


def summarize(aps: NDArray[np.float64], classes: Sequence[str]) -> dict[str, float]:
    """AP, AP50, AP75 and each class's AP from (classes, thresholds) values, averaged as in Detectron2."""
    means = [np.mean(column.tolist()) for column in aps.T]
    overall = {"AP": np.mean(means), "AP50": means[0], "AP75": means[THRESHOLDS.index(0.75)]}
    each = {f"AP-{name}": np.mean(row) for name, row in zip(classes, aps, strict=True)}
    return {key: float(value) for key, value in {**overall, **each}.items()}


def detections_by_class(
    images: Sequence[tuple[int, NDArray[Any], NDArray[Any], NDArray[Any]]], count: int
) -> list[ClassDetections]:
    """Per-image detections (image index, scores, boxes, classes), class by class, in the given order."""
    sizes = [len(scores) for _, scores, _, _ in images]
    image = np.repeat(np.array([index for index, *_ in images], dtype=np.int64), sizes)
    scores = np.concatenate([np.empty(0), *(found[1] for found in images)])
    boxes = np.concatenate([np.empty((0, 4)), *(found[2] for found in images)])
    classes = np.concatenate([np.empty(0, dtype=np.int64), *(found[3] for found in images)])
    rows = [np.flatnonzero(classes == label) for label in range(count)]
    return [ClassDetections(image[row], scores[row], boxes[row]) for row in rows]
