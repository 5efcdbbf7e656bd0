"""Benchmark of a training step of the C4 detector against MoCo's detection code."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn

from benchmarks.paired import PairedBenchmark
from ssl_transfer.environment import ROOT
from transfer.engine.config import load_config
from transfer.engine.detection_trainer import DetectionTrainer
from transfer.engine.guards import resolve_norm
from transfer.engine.seeding import STEP, seed_torch
from transfer.engine.trial import build_detector
from transfer.modeling.memory_format import channels_last
from transfer.modeling.roi_align import make_separable

LOSS_LIMIT = 1e-4
"""Largest difference of a step's losses relative to their sum: float32 sums in another order."""

OBJECTS = 4
"""Annotated objects in each image; Detectron2 adds them to the proposals."""

Batch = list[dict[str, Any]]
Stepper = Callable[[], dict[str, float]]


def benchmarks() -> Iterator[PairedBenchmark]:
    """A step for VOC, and one with masks for COCO."""
    yield c4_step("voc0712_trainval")
    yield c4_step("coco")


def c4_step(task: str, images: int = 2, rois: int = 16, height: int = 192, width: int = 256) -> PairedBenchmark:
    """Time a step of full width as a trial runs it with TRANSFER.CHANNELS_LAST and `TRANSFER.ROI_ALIGN separable`.

    The peer is Detectron2's step as MoCo's detection code uses it: PyTorch's default memory layout, torchvision's
    RoIAlign, Detectron2's loop. Images and RoIs are few, to suit two cores; their ratio is about that of the real step
    (512 RoIs for an image of 800 × 1200), where res5 on the RoIs takes most of the time. All proposals are trained on:
    a sample would depend on the order of nearly equal scores, so on rounding.

    Args:
        task: name of the config.
        images, rois: images per batch, RoIs per image.
        height, width: of an image, in pixels.
    """

    @functools.cache
    def steppers() -> tuple[Stepper, Stepper]:  # created lazily: a row that --only leaves out costs nothing
        cfg = small_config(task, images, rois)
        model = random_detector(cfg)
        batch = random_batch(images, height, width, cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.MASK_ON)
        return our_stepper(model, cfg, batch), their_stepper(model, cfg, batch)

    def equal() -> str:
        ours, theirs = steppers()
        gap = 0.0
        for _ in range(3):
            a, b = ours(), theirs()
            assert a.keys() == b.keys(), f"{sorted(a)} are not {sorted(b)}"
            total = sum(b.values())
            gap = max(gap, *(abs(a[name] - b[name]) / total for name in b))
        assert gap <= LOSS_LIMIT, f"the losses of three steps differ by {gap:.2g} of their sum"
        return f"3 steps' losses: max |Δ| {gap:.0e} of the sum"

    what = f"C4 step, {task}, {images} images {height}×{width}, {rois} RoIs each, channels-last, separable RoIAlign"
    peer = "MoCo's detection code's: Detectron2's loop, contiguous"
    return PairedBenchmark(what, peer, lambda: steppers()[0](), lambda: steppers()[1](), equal, 1, "steps")


def random_detector(cfg: CfgNode) -> nn.Module:
    """A detector whose residual blocks add little, as in a trained one.

    With plain random weights rounding errors grow: proposals move, and equal implementations diverge.
    """
    torch.manual_seed(0)
    model = build_detector(cfg)
    for name, parameter in model.named_parameters():
        if name.endswith("conv3.norm.weight"):
            nn.init.constant_(parameter, 0.2)
    return model


def small_config(task: str, images: int, rois: int) -> CfgNode:
    """A task's config on the CPU, with few images and RoIs."""
    words = (
        *("MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", str(images), "MODEL.MASK_ON", str(task.startswith("coco"))),
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", str(rois), "MODEL.ROI_HEADS.POSITIVE_FRACTION", "1.0"),
        *("MODEL.RPN.POST_NMS_TOPK_TRAIN", str(rois - OBJECTS)),
    )
    cfg = load_config(ROOT / f"configs/transfer/{task}.yaml", overrides=words).cfg
    cfg.SEED = 0
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80 if task.startswith("coco") else 20
    resolve_norm(cfg, processes=1)
    return cfg


def our_stepper(model: nn.Module, cfg: CfgNode, batch: Batch) -> Stepper:
    """The trainer's step on a copy of the model, guards included."""
    trainer = DetectionTrainer(cfg, channels_last(make_separable(copy.deepcopy(model))).train())
    trainer.stepper.data_loader = RepeatedBatch(batch)
    trainer.iter = 0
    storage = EventStorage(0)

    def step() -> dict[str, float]:
        with storage:
            trainer.run_step()
        trainer.iter += 1
        return _losses(storage)

    return step


def their_stepper(model: nn.Module, cfg: CfgNode, batch: Batch) -> Stepper:
    """The step of Detectron2's DefaultTrainer, MoCo's base class; torch is seeded as in ours, to sample equally."""
    own = copy.deepcopy(model).train()
    optimizer = build_optimizer(cfg, own)
    build_lr_scheduler(cfg, optimizer)  # sets the learning rate of the first step, which neither side changes
    trainer = SimpleTrainer(own, RepeatedBatch(batch), optimizer)
    trainer.iter = 0
    storage = EventStorage(0)

    def step() -> dict[str, float]:
        seed_torch(cfg.SEED, STEP, 0, trainer.iter)
        with storage:
            trainer.run_step()
        trainer.iter += 1
        return _losses(storage)

    return step


class RepeatedBatch:
    """An endless loader of one batch."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.batch


def _losses(storage: EventStorage) -> dict[str, float]:
    return {name: float(value) for name, (value, _) in storage.latest().items() if name.startswith("loss_")}


def random_batch(images: int, height: int, width: int, classes: int, masks: bool) -> Batch:
    """Images of noise with a few objects each, in the format of Detectron2's mapper."""
    rng = np.random.default_rng(0)
    batch: Batch = []
    for _ in range(images):
        corners = rng.uniform(0, 0.6, (OBJECTS, 2)) * (width, height)
        boxes = np.concatenate([corners, corners + rng.uniform(0.2, 0.4, (OBJECTS, 2)) * (width, height)], axis=1)
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
        instances.gt_classes = torch.tensor(rng.integers(0, classes, OBJECTS))
        if masks:  # a triangle in each box
            instances.gt_masks = PolygonMasks([[np.array([x0, y0, x1, y0, x0, y1])] for x0, y0, x1, y1 in boxes])
        pixels = torch.tensor(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
        batch.append({"image": pixels, "height": height, "width": width, "instances": instances})
    return batch
