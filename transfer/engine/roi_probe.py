"""A linear probe on RoI features: how well do a backbone's features tell a task's objects apart, before fine-tuning?

Each annotated box is pooled from the detector's features of its whole image, as a proposal that fits exactly would be:
in C4 before and after res5, which is the head there; in FPN after each stage of the ResNet. A linear classifier learns
the training boxes' classes and is measured on the test boxes. As at the end of a trial, batch norm has the statistics
of the task's own images: those of pre-training belong to images of another scale.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, BoxMode
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import Tensor, nn

from ssl_transfer.environment import describe
from ssl_transfer.errors import UserError
from ssl_transfer.formats.results import RESULT_FILE, EvaluationResult
from transfer.engine.detection_data import NamingMapper, to_detectron2
from transfer.engine.precise_bn import update_synchronised
from transfer.engine.prepare import PreparedTrial, TrialRequest, resolve_trial
from transfer.engine.trial import build_seeded_detector
from transfer.engine.weights import load_weights
from transfer.tasks.task import Dataset, Task, require_images
from transfer.weights.public import is_public

STAGES = ("res4", "res5")
IMAGES = 2000
"""Images of a split that are used at most: a random part of the larger splits."""
BATCH = 8
PENALTIES = tuple(float(10.0**power) for power in range(-3, 4))
"""Ridge penalties, in mean squared singular values of the features."""

Features = NDArray[np.float64]


def probe_rois(
    trial: TrialRequest, *, write: bool, name: str | None = None, untrained: bool = False
) -> EvaluationResult:
    """Probe the initial weights of a trial on its task.

    Args:
        trial: config, weights, seed and folder.
        write: write `result.json` into the folder.
        name: of the weights; by default their method's or their file's.
        untrained: probe an untrained detector of the same seed, too.

    Returns:
        The result; metrics in per cent: `STAGE_top1` for res4 and res5 with its 95 % interval (Wilson's, which takes
        boxes as independent) `STAGE_low` and `STAGE_high`; `majority`, what the most frequent class gets; with
        `untrained`, the same of the untrained detector as `untrained_STAGE_…`.

    Raises:
        UserError: something about the request is wrong; nothing has been written.
    """
    start = time.monotonic()
    file = trial.output / RESULT_FILE
    if write and file.exists():
        raise UserError(f"{file} exists already; give another --output")
    if not write and is_public(trial.weights):
        raise UserError(f"--weights {trial.weights}: needs --output DIR, where the checkpoint is converted to")
    prepared, task, _ = resolve_trial(trial)
    if prepared.cfg.TRANSFER.CHECK_IMAGES:
        require_images(task)
    metrics, sizes = _probe(prepared, task, untrained=False)
    if untrained:
        again, _ = _probe(prepared, task, untrained=True)
        metrics |= {f"untrained_{key}": value for key, value in again.items() if key != "majority"}
    result = _result(prepared, name, metrics, sizes, time.monotonic() - start)
    if write:
        file.parent.mkdir(parents=True, exist_ok=True)
        result.write(file)
    return result


def _probe(prepared: PreparedTrial, task: Task, untrained: bool) -> tuple[dict[str, float], dict[str, int]]:
    """Metrics in per cent, and numbers of images and boxes."""
    detector = build_seeded_detector(prepared.cfg)
    if not untrained:
        load_weights(detector, prepared.weights)
    pooled = _PooledBoxes(detector)
    splits = [_dicts([*task.train], prepared), _dicts([task.test], prepared)]
    pooled.train()
    update_synchronised(pooled, _batches(splits[0], prepared))
    pooled.eval()
    (train, labels), (test, truth) = (_collect(pooled, _batches(split, prepared)) for split in splits)
    count = len(task.classes)
    if not len(labels) or not len(truth):
        raise UserError(f"{task.name}: a probe needs annotated boxes in the training and in the test split")
    metrics = {"majority": 100.0 * float(np.mean(truth == np.bincount(labels, minlength=count).argmax()))}
    for stage in STAGES:
        right = int((classify(train[stage], labels, test[stage], count) == truth).sum())
        interval = binomtest(right, len(truth)).proportion_ci(method="wilson")
        values = {"top1": right / len(truth), "low": interval.low, "high": interval.high}
        metrics |= {f"{stage}_{key}": 100.0 * float(value) for key, value in values.items()}
    sizes = {"training_images": len(splits[0]), "test_images": len(splits[1])}
    return metrics, {**sizes, "training_boxes": len(labels), "test_boxes": len(truth), "classes": count}


class _PooledBoxes(nn.Module):
    """Features of annotated boxes: res4 and res5, pooled by the detector's own RoIAlign and averaged over each box."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector: Any = detector

    @torch.no_grad()
    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """(boxes, channels) of each stage; a batch is a list of mapped images with `boxes`, in their own pixels."""
        images = self.detector.preprocess_image(batch)
        boxes = [Boxes(image["boxes"].to(images.tensor.device)) for image in batch]
        pool = _pool_fpn if hasattr(self.detector.backbone, "bottom_up") else _pool_c4
        return {stage: pooled.mean((2, 3)) for stage, pooled in pool(self.detector, images.tensor, boxes).items()}


def _pool_c4(detector: Any, images: Tensor, boxes: list[Boxes]) -> dict[str, Tensor]:
    """(boxes, channels, h, w): res4 as the head receives it, and the head's res5."""
    heads, features = detector.roi_heads, detector.backbone(images)
    pooled = heads.pooler([features[name] for name in heads.in_features], boxes)
    return {"res4": pooled, "res5": heads.res5(pooled)}


def _pool_fpn(detector: Any, images: Tensor, boxes: list[Boxes]) -> dict[str, Tensor]:
    """The same of the ResNet below the pyramid, each stage at its own stride."""
    resnet, size = detector.backbone.bottom_up, detector.roi_heads.box_pooler.output_size
    features, shapes = resnet(images), resnet.output_shape()
    poolers = {stage: ROIPooler(size, (1 / shapes[stage].stride,), 0, "ROIAlignV2") for stage in STAGES}
    return {stage: pooler([features[stage]], boxes) for stage, pooler in poolers.items()}


def _dicts(datasets: list[Dataset], prepared: PreparedTrial) -> list[dict[str, Any]]:
    """Images with boxes as Detectron2's dicts: all of them, or a random part; crowds are left out."""
    found = []
    for dataset in datasets:
        dicts = [to_detectron2(record, dataset.split.layout) for record in dataset.records]
        if len(dicts) > IMAGES:
            chosen = np.random.default_rng(prepared.cfg.SEED).choice(len(dicts), IMAGES, replace=False)
            dicts = [dicts[index] for index in sorted(chosen.tolist())]
        for one in dicts:
            one["objects"] = [thing for thing in one.pop("annotations") if not thing.get("iscrowd")]
        found += [one for one in dicts if one["objects"]]
    return found


def _batches(dicts: list[dict[str, Any]], prepared: PreparedTrial) -> Iterator[list[dict[str, Any]]]:
    """Images as for a test, with `boxes` scaled as they are, (n, 4), and `labels`; images of one shape side by side."""
    mapper = NamingMapper(prepared.cfg, is_train=False)
    ordered = sorted(dicts, key=lambda one: one["width"] / one["height"])
    for start in range(0, len(ordered), BATCH):
        batch = [mapper(one) for one in ordered[start : start + BATCH]]
        for image in batch:
            corners = [BoxMode.convert(o["bbox"], o["bbox_mode"], BoxMode.XYXY_ABS) for o in image["objects"]]
            height, width = image["image"].shape[1:]
            scale = torch.tensor([width / image["width"], height / image["height"]] * 2)
            image["boxes"] = torch.tensor(corners, dtype=torch.float32) * scale
        yield batch


def _collect(
    pooled: _PooledBoxes, batches: Iterator[list[dict[str, Any]]]
) -> tuple[dict[str, Features], NDArray[np.int64]]:
    """Features of each stage (boxes, channels) and labels (boxes,)."""
    features: dict[str, list[Features]] = {stage: [] for stage in STAGES}
    labels: list[int] = []
    for batch in batches:
        for stage, values in pooled(batch).items():
            features[stage].append(values.double().cpu().numpy())
        labels += [thing["category_id"] for image in batch for thing in image["objects"]]
    joined = {stage: np.concatenate(values) if values else np.empty((0, 1)) for stage, values in features.items()}
    return joined, np.asarray(labels, dtype=np.int64)


def classify(train: Features, labels: NDArray[np.int64], test: Features, classes: int) -> NDArray[np.int64]:
    """Labels of the test boxes by ridge regression on one-hot labels, with the penalty of the best leave-one-out score.

    Source of the closed form of leave-one-out: Allen, The relationship between variable selection and data augmentation
    and a method for prediction (Technometrics 16, 1974).

    Args:
        train, test: features (boxes, channels).
        labels: of the training boxes.
        classes: their number.
    """
    mean, spread = train.mean(0), train.std(0)
    spread[spread < 1e-12] = 1.0
    train, test = (train - mean) / spread, (test - mean) / spread
    hot = np.eye(classes)[labels]
    share = hot.mean(0)
    u, s, vt = np.linalg.svd(train, full_matrices=False)
    projected = u.T @ (hot - share)
    best = (-1, np.empty(0))
    for penalty in PENALTIES:
        filtered = s**2 / (s**2 + penalty * np.mean(s**2) + 1e-30)
        leverage = (u**2) @ filtered + 1 / len(labels)
        left_out = hot - (hot - share - u @ (filtered[:, None] * projected)) / np.maximum(1 - leverage, 1e-9)[:, None]
        score = int((left_out.argmax(1) == labels).sum())
        if score >= best[0]:  # of equals the largest penalty
            best = (score, filtered)
    inverse = np.divide(best[1], s, out=np.zeros_like(s), where=s > 1e-12)
    return (share + test @ vt.T @ (inverse[:, None] * projected)).argmax(1)


def _result(
    prepared: PreparedTrial, name: str | None, metrics: dict[str, float], sizes: dict[str, int], seconds: float
) -> EvaluationResult:
    cfg, weights = prepared.cfg, prepared.weights
    manifest = weights.manifest
    content = {
        "status": "done",
        "kind": "roi",
        "seed": cfg.SEED,
        "toy": bool(cfg.TRANSFER.TOY or (manifest is not None and manifest.toy)),
        "metrics": metrics,
        "settings": {
            "task": cfg.TRANSFER.TASK,
            "train_splits": list(cfg.DATASETS.TRAIN),
            "test_split": cfg.DATASETS.TEST[0],
            "short_side": cfg.INPUT.MIN_SIZE_TEST,
            "pooler_resolution": cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION,
            **sizes,
        },
        "weights": {
            "name": name or weights.name,
            "path": None if weights.path is None else str(weights.path),
            "sha256": weights.sha256,
            "arch": f"resnet{cfg.MODEL.RESNETS.DEPTH}",
            "origin": None if manifest is None else manifest.origin,
        },
        "config": {"recipe": prepared.request.config_file.stem, "data": cfg.TRANSFER.DATA_ROOT},
        "environment": describe(),
        "timing": {"seconds": seconds},
    }
    return EvaluationResult.parse(content, RESULT_FILE)
