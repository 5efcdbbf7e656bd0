"""Every evaluator's detections, gathered over all ranks into one table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.structures import Instances
from detectron2.utils import comm
from numpy.typing import NDArray

from transfer.evaluation.matching import DetectedObjects
from transfer.evaluation.run_lengths import encode_masks
from transfer.tasks.task import Dataset

_Image = tuple[int, NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], Sequence[bytes]]
"""Index of an image; boxes, scores and classes as the detector answered; masks, if they are kept."""


class DetectionCollector:
    """Keeps the detections of this rank's images.

    Args:
        dataset: the test split; detections are in the order of its images, however many ranks found them.
        masks: keep masks besides boxes.
    """

    def __init__(self, dataset: Dataset, masks: bool) -> None:
        self.masks = masks
        self.indices = {record.image_id: index for index, record in enumerate(dataset.records)}
        self.reset()

    def reset(self) -> None:
        """Forget all detections."""
        self.found: list[_Image] = []

    def add(self, image_id: str | int, instances: Instances, masks: Sequence[bytes] | None = None) -> None:
        """Add one image's detections; an image that is not in the split is left to `check_each_once`.

        Args:
            image_id: as the split's records have it.
            instances: the detector's answer.
            masks: its masks as run lengths, where the evaluator has them already.
        """
        if image_id not in self.indices:
            return
        boxes = instances.pred_boxes.tensor.cpu().numpy().astype(np.float32)
        if self.masks and masks is None:
            masks = encode_masks(instances.pred_masks.cpu().numpy(), _sides(boxes))
        scores, classes = instances.scores.cpu().numpy().astype(np.float32), instances.pred_classes.cpu().numpy()
        self.found.append((self.indices[image_id], boxes, scores, classes, masks or ()))

    def gather(self) -> DetectedObjects | None:
        """All ranks' detections, on rank 0; None elsewhere."""
        gathered = comm.gather(self.found, dst=0)
        if not comm.is_main_process():
            return None
        images = sorted((one for rank in gathered for one in rank), key=lambda one: one[0])
        empty = (np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))
        corners, scores, classes = (
            np.concatenate([none, *(one[part] for one in images)]) for part, none in enumerate(empty, start=1)
        )
        return DetectedObjects(
            image=np.repeat([one[0] for one in images], [len(one[2]) for one in images]).astype(np.int32),
            label=classes.astype(np.int16),
            score=scores.astype(np.float64),
            corners=corners,
            boxes=_sides(corners).astype(np.float64),
            masks=[mask for one in images for mask in one[4]] if self.masks else None,
        )


def _sides(corners: NDArray[np.float32]) -> NDArray[np.float32]:
    """x, y, width, height, in float32 as Detectron2's BoxMode computes them."""
    boxes = corners.copy()
    boxes[:, 2:] -= boxes[:, :2]
    return boxes
