"""COCO's evaluator: boxes and masks by hotcoco, with the digits of pycocotools."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import hotcoco
import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm
from numpy.typing import NDArray

from ssl_transfer.errors import UserError
from transfer.evaluation.run_lengths import encode_masks
from transfer.tasks.task import Dataset, ground_truth

NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ImageDetections:
    """The detections in one image, as arrays: gathering a dictionary for each detection would be slow.

    Attributes:
        image_id: the image's id in the annotation file.
        size: height and width in pixels.
        boxes: (N, 4) float32 x, y, width, height in pixels.
        scores: (N,) float32.
        classes: (N,) int64 labels.
        masks: N compressed RLE strings; None where masks are not evaluated.
    """

    image_id: int
    size: tuple[int, int]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    masks: list[bytes] | None


class HotCOCOEvaluator(DatasetEvaluator):
    """Detectron2's `COCOEvaluator` digit for digit, computed by hotcoco instead of pycocotools.

    Args:
        dataset: the test split; rank 0 alone keeps its annotations, as hotcoco has them.
        masks: evaluate masks besides boxes.

    Raises:
        UserError: hotcoco cannot read the annotations.
    """

    def __init__(self, dataset: Dataset, masks: bool) -> None:
        try:
            self.truth = hotcoco.COCO(ground_truth(dataset)) if comm.is_main_process() else None
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{dataset.split.annotations}: hotcoco cannot read its annotations: {error}") from error
        self.classes = dataset.classes
        self.category_ids = np.array(dataset.category_ids, dtype=np.int64)
        self.masks = masks
        self.reset()

    def reset(self) -> None:
        """Forget all detections."""
        self.found: list[ImageDetections] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Add one batch's detections."""
        for image, output in zip(inputs, outputs, strict=True):
            self.found.append(detections_of(image["image_id"], output["instances"], self.masks))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """The metric over all ranks' detections.

        Returns:
            On rank 0 `{"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl", "AP-<class>", …}, "segm": …}` in per cent,
            NaN where nothing can be computed; None elsewhere.
        """
        gathered = comm.gather(self.found, dst=0)
        if not comm.is_main_process():
            return None
        images = [found for rank in gathered for found in rank if len(found.scores)]
        kinds = ("bbox", "segm") if self.masks else ("bbox",)
        if not images:  # as Detectron2 returns; `metrics_of` converts it
            return {kind: dict.fromkeys(NUMBERS, float("nan")) for kind in kinds}
        return {kind: self._measure(images, kind) for kind in kinds}

    def _measure(self, images: Sequence[ImageDetections], kind: str) -> dict[str, float]:
        truth = self.truth
        assert truth is not None
        rows = boxes_for_coco if kind == "bbox" else masks_for_coco
        evaluation = hotcoco.COCOeval(truth, truth.load_res(rows(images, self.category_ids)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        for line in evaluation.summary_lines():
            logger.info("%s %s", kind, line.strip())
        assert evaluation.eval is not None
        return summarize(evaluation.eval["precision"], self.classes)


def detections_of(image_id: int, instances: Instances, masks: bool) -> ImageDetections:
    """One image's detections in COCO's format, converted in float32 as in Detectron2."""
    boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).cpu().numpy()
    return ImageDetections(
        image_id,
        instances.image_size,
        boxes,
        instances.scores.cpu().numpy(),
        instances.pred_classes.cpu().numpy(),
        encode_masks(instances.pred_masks.cpu().numpy(), boxes) if masks else None,
    )


def boxes_for_coco(images: Sequence[ImageDetections], category_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """All detections as COCO's (N, 7) rows: image, x, y, width, height, score, category."""
    sizes = [len(found.scores) for found in images]
    columns = (
        np.repeat([found.image_id for found in images], sizes)[:, None],
        np.concatenate([found.boxes for found in images]),
        np.concatenate([found.scores for found in images])[:, None],
        category_ids[np.concatenate([found.classes for found in images])][:, None],
    )
    return np.concatenate([column.astype(np.float64) for column in columns], axis=1)


def masks_for_coco(images: Sequence[ImageDetections], category_ids: NDArray[np.int64]) -> list[dict[str, Any]]:
    """All detections as COCO's results, without boxes: a mask counts as small by its own area, not by its box's."""
    rows = []
    for found in images:
        size, ids, scores = list(found.size), category_ids[found.classes].tolist(), found.scores.tolist()
        for category, score, counts in zip(ids, scores, found.masks or (), strict=True):
            mask = {"size": size, "counts": counts}
            rows.append({"image_id": found.image_id, "category_id": category, "score": score, "segmentation": mask})
    return rows


def summarize(precision: NDArray[np.float64], classes: Sequence[str]) -> dict[str, float]:
    """COCO's numbers and each class's AP in per cent, NaN where nothing can be computed.

    Args:
        precision: (thresholds, recalls, classes, areas, numbers of detections), −1 where there is no object.
        classes: names; a single one has no AP per class, as in Detectron2.
    """
    every = precision[..., -1]  # with 100 detections an image
    parts = {"AP": every[..., 0], "AP50": every[:1, ..., 0], "AP75": every[5:6, ..., 0]}
    parts |= {name: every[..., area] for area, name in enumerate(("APs", "APm", "APl"), start=1)}
    if len(classes) > 1:
        parts |= {f"AP-{name}": every[:, :, label, 0] for label, name in enumerate(classes)}
    return {name: _mean(part) for name, part in parts.items()}


def _mean(precision: NDArray[np.float64]) -> float:
    reached = precision[precision > -1]
    return float(np.mean(reached) * 100) if reached.size else float("nan")
