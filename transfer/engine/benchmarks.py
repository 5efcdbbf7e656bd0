"""What `make bench` measures of fine-tuning: a step of the C4 detector beside MoCo's detection code's."""

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

from common.environment import ROOT
from common.measure import Comparison
from transfer.engine.config import load_config
from transfer.engine.detection_trainer import DetectionTrainer
from transfer.engine.guards import resolve_norm
from transfer.engine.seeding import STEP, seed_torch
from transfer.engine.trial import build_detector
from transfer.modeling.memory_format import channels_last
from transfer.modeling.roi_align import make_separable

LOSS_LIMIT = 1e-4
"""How far the losses of a step may be apart, relative to the step's total: float32 sums in another order."""

OBJECTS = 4
"""Annotated in each image; Detectron2 adds them to the proposals."""

Batch = list[dict[str, Any]]
Stepper = Callable[[], dict[str, float]]


def comparisons() -> Iterator[Comparison]:
    """A step for VOC, and one with masks for COCO."""
    yield c4_step("voc0712_trainval")
    yield c4_step("coco")


def c4_step(task: str, images: int = 2, rois: int = 16, height: int = 192, width: int = 256) -> Comparison:
    """A step at full width, as a trial makes it with TRANSFER.CHANNELS_LAST and `TRANSFER.ROI_ALIGN separable`.

    The peer makes it as MoCo's detection code lets Detectron2 make it: PyTorch's default memory layout, torchvision's
    RoIAlign, its own loop.
    Images and RoIs are few, so that two cores do; their proportion is about that of the real step (512 RoIs for an
    image of 800 × 1200), whose time is for the greater part res5's on the RoIs. All proposals there are get trained on:
    which of more are drawn hangs on the order of nearly equal scores, so on rounding.

    Args:
        task: whose config.
        images, rois: images a batch, and RoIs an image.
        height, width: of an image, in pixels.
    """

    @functools.cache
    def steppers() -> tuple[Stepper, Stepper]:  # made when they are asked for: a row that is not wanted costs nothing
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
    return Comparison(what, peer, lambda: steppers()[0](), lambda: steppers()[1](), equal, 1, "steps")


def random_detector(cfg: CfgNode) -> nn.Module:
    """A detector whose residual blocks add little, as trained ones do.

    One whose blocks all add their share makes much of rounding: proposals move, and two equal ways part.
    """
    torch.manual_seed(0)
    model = build_detector(cfg)
    for name, parameter in model.named_parameters():
        if name.endswith("conv3.norm.weight"):
            nn.init.constant_(parameter, 0.2)
    return model


def small_config(task: str, images: int, rois: int) -> CfgNode:
    """A task's config with as many images and RoIs as two cores can do, on the CPU."""
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
    """Our trainer's own step on a copy of the model, guards included."""
    trainer = DetectionTrainer(cfg, channels_last(make_separable(copy.deepcopy(model))).train())
    trainer.stepper.data_loader = ForEver(batch)
    trainer.iter = 0
    storage = EventStorage(0)

    def step() -> dict[str, float]:
        with storage:
            trainer.run_step()
        trainer.iter += 1
        return _losses(storage)

    return step


def their_stepper(model: nn.Module, cfg: CfgNode, batch: Batch) -> Stepper:
    """Detectron2's step as its DefaultTrainer, MoCo's base, makes it; torch is seeded as ours is, to sample alike."""
    own = copy.deepcopy(model).train()
    optimizer = build_optimizer(cfg, own)
    build_lr_scheduler(cfg, optimizer)  # sets the first step's rate, which neither side changes
    trainer = SimpleTrainer(own, ForEver(batch), optimizer)
    trainer.iter = 0
    storage = EventStorage(0)

    def step() -> dict[str, float]:
        seed_torch(cfg.SEED, STEP, 0, trainer.iter)
        with storage:
            trainer.run_step()
        trainer.iter += 1
        return _losses(storage)

    return step


class ForEver:
    """The same batch again and again."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.batch


def _losses(storage: EventStorage) -> dict[str, float]:
    return {name: float(value) for name, (value, _) in storage.latest().items() if name.startswith("loss_")}


def random_batch(images: int, height: int, width: int, classes: int, masks: bool) -> Batch:
    """Images of noise with a few objects each, as Detectron2's mapper hands them over."""
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
