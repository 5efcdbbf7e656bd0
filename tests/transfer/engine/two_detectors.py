"""Detectors for two processes: a narrow one without sampling, and one that knows every answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data.detection_utils import annotations_to_instances
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ssl_transfer.formats.backbone import TORCHVISION
from ssl_transfer.training.collectives import wrap_distributed
from tests.transfer.parity import parity_world
from transfer.engine import detection_data as data
from transfer.engine.config import load_config
from transfer.engine.prepare import resolve_preprocessing
from transfer.modeling import register
from transfer.tasks.task import Dataset

PROPOSALS, OBJECTS = 20, 2
"""An image's proposals on VOC (none on COCO, whose mask loss is a mean over objects) and its objects."""
ALL = str(10**6)
UNSAMPLED = (
    *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "4", "MODEL.ANCHOR_GENERATOR.SIZES", "[[16, 32]]"),
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", ALL, "MODEL.RPN.POSITIVE_FRACTION", "1.0", "MODEL.RPN.NMS_THRESH", "1.0"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", ALL, "MODEL.ROI_HEADS.POSITIVE_FRACTION", "1.0"),
    *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "6", "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", "6"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "8", "MODEL.ROI_HEADS.NUM_CLASSES", "3"),
)
"""A detector that takes every anchor, proposal and object: nothing about its step is drawn."""
LISTENED = ("backbone", "proposal_generator.rpn_head", "roi_heads.box_predictor", "roi_heads.mask_head.predictor")


def unsampled(root: Path, task: str, norm: str) -> nn.Module:
    """The detector of a task, narrow, in float64; weights from one seed."""
    proposals = str(0 if task == "coco" else PROPOSALS)
    words = (*UNSAMPLED, "MODEL.RESNETS.NORM", norm, "MODEL.RPN.POST_NMS_TOPK_TRAIN", proposals)
    loaded = load_config(root / f"configs/transfer/{task}.yaml", overrides=words)
    resolve_preprocessing(loaded.cfg, TORCHVISION, loaded.set_keys)
    register()
    torch.manual_seed(0)
    model: nn.Module = build_model(loaded.cfg)
    return model.double().train()


def prescribed(masks: bool) -> list[dict[str, Any]]:
    """Four images of one size, each with as many objects."""
    generator = np.random.RandomState(2)
    batch = []
    for _ in range(4):
        corners = generator.uniform(0, 30, (OBJECTS, 2))
        boxes = np.concatenate([corners, corners + generator.uniform(15, 30, (OBJECTS, 2))], axis=1)
        instances = Instances((64, 64))
        instances.gt_boxes = Boxes(torch.from_numpy(boxes))
        instances.gt_classes = torch.from_numpy(generator.randint(0, 3, OBJECTS))
        if masks:
            instances.gt_masks = PolygonMasks([[np.array([x0, y0, x1, y0, x0, y1])] for x0, y0, x1, y1 in boxes])
        pixels = torch.from_numpy(generator.randint(0, 256, (3, 64, 64)).astype(np.uint8))
        batch.append({"image": pixels, "height": 64, "width": 64, "instances": instances})
    return batch


def step(model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Any]:
    """One forward and backward: outputs of the parts, losses, gradients, statistics, values a norm layer saw."""
    outputs: dict[str, list[Tensor]] = {}
    counts: dict[str, int] = {}
    parts = dict(model.named_modules())

    def listen(name: str) -> None:
        def note(_part: nn.Module, _inputs: Any, output: Any) -> None:
            outputs[name] = [value.detach() for value in tensors_of(output)]

        parts[name].register_forward_hook(note)

    def count(name: str) -> None:
        def note(_part: nn.Module, inputs: tuple[Tensor]) -> None:
            counts[name] = inputs[0].numel() // inputs[0].shape[1]

        parts[name].register_forward_pre_hook(note)

    for name in LISTENED:
        if name in parts:
            listen(name)
    for name, part in parts.items():
        if isinstance(part, nn.BatchNorm2d):
            count(name)
    wrapped = wrap_distributed(model)  # to be kept: it averages the gradients for as long as it lives
    with EventStorage(), parity_world.float64():
        losses = wrapped(batch)
    sum(losses.values()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    statistics = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
    found = {name: value.detach() for name, value in losses.items()}
    return {"outputs": outputs, "losses": found, "gradients": gradients, "statistics": statistics, "counts": counts}


def tensors_of(output: Any) -> list[Tensor]:
    """Every tensor of a part's output."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [tensor for value in values for tensor in tensors_of(value)]


class Oracle(nn.Module):
    """Detects what the annotations say, each object once, and nothing else.

    Args:
        dataset: the test split.
        blind: the place of an image of which it sees nothing; None: it sees all.
    """

    def __init__(self, dataset: Dataset, blind: int | None = None) -> None:
        super().__init__()
        dicts = [data.to_detectron2(record, dataset.split.layout) for record in dataset.records]
        self.masks = dataset.split.layout == "coco"
        self.answers = {image["image_id"]: image for image in dicts}
        self.blind = None if blind is None else dicts[blind]["image_id"]
        self.seen: list[Any] = []

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        return [{"instances": self.answer(image["image_id"])} for image in batch]

    def answer(self, image_id: Any) -> Instances:
        self.seen.append(image_id)
        image = self.answers[image_id]
        size = (image["height"], image["width"])
        things = [] if image_id == self.blind else [a for a in image["annotations"] if not a.get("iscrowd")]
        truth = annotations_to_instances(things, size)
        found = Instances(size)
        found.pred_boxes, found.scores = truth.gt_boxes, torch.full((len(things),), 0.9)
        found.pred_classes = truth.gt_classes
        if self.masks:
            found.pred_masks = masks_of(truth, size)
        return found


def masks_of(truth: Instances, size: tuple[int, int]) -> Tensor:
    """The polygons as bitmasks of the whole image."""
    from detectron2.structures import BitMasks

    if not len(truth):
        return torch.zeros((0, *size), dtype=torch.bool)
    return BitMasks.from_polygon_masks(truth.gt_masks, *size).tensor
