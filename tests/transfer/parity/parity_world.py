"""A narrow detector in float64 and ten batches, drawn by numpy so that every version of torch sees the same ones."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.structures import Boxes, Instances, PolygonMasks
from torch import Tensor, nn
from torch.nn import functional

STEPS = 10
SEED = 3
NARROW = (
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "4", "MODEL.ANCHOR_GENERATOR.SIZES", "[[8, 16, 32]]"),
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "32", "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "60"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "30", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "12"),
    *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "6", "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", "6"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "8", "SOLVER.IMS_PER_BATCH", "2"),
)
NARROW_FPN = (
    *NARROW,
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[4], [8], [16], [32], [64]]", "MODEL.FPN.OUT_CHANNELS", "16"),
    *("MODEL.ROI_BOX_HEAD.CONV_DIM", "8", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
)
"""The same for a detector with a feature pyramid."""


def narrow(task: str) -> tuple[str, ...]:
    """The overrides that make a task's detector narrow."""
    return NARROW_FPN if "fpn" in task else NARROW


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Let Detectron2 train a model of float64: it holds boxes and targets in float32 whatever the model's type.

    NMS wants scores of the boxes' type; a cross-entropy is of its target's type. Boxes go through logarithms and back,
    whose last bit in float32 is the processor's (on an Intel one MKL's); computed in float64 and rounded it is not.
    """
    nms, entropy = proposal_utils.batched_nms, functional.binary_cross_entropy_with_logits

    def nms_in_float32(boxes: Tensor, scores: Tensor, levels: Tensor, threshold: float) -> Tensor:
        return nms(boxes, scores.float(), levels, threshold)

    def entropy_in_float64(logits: Tensor, target: Tensor, **more: Any) -> Tensor:
        return entropy(logits, target.to(logits.dtype), **more)

    def rounded(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        return function(values.double()).to(values.dtype)

    with contextlib.ExitStack() as stack:
        for name in ("log", "exp", "sqrt", "log2"):
            stack.enter_context(mock.patch.object(torch, name, functools.partial(rounded, getattr(torch, name))))
        stack.enter_context(mock.patch.object(proposal_utils, "batched_nms", nms_in_float32))
        stack.enter_context(mock.patch.object(functional, "binary_cross_entropy_with_logits", entropy_in_float64))
        yield


def initial_state(model: nn.Module) -> dict[str, Tensor]:
    """Weights for every tensor of the detector, a function of its name's place in the alphabet and of its shape."""
    state = model.state_dict()
    generator = np.random.RandomState(11)
    for name in sorted(state):
        if name.startswith("pixel_") or name.endswith("num_batches_tracked"):
            continue
        shape = tuple(state[name].shape)
        drawn = generator.standard_normal(shape)
        if len(shape) == 4:
            drawn *= (2 / np.prod(shape[1:])) ** 0.5
        elif name.endswith(("norm.weight", "running_var")):
            drawn = 1 + 0.1 * np.abs(drawn)
        else:
            drawn *= 0.1
        state[name] = torch.from_numpy(np.asarray(drawn))
    return state


def batches(classes: int, masks: bool, steps: int = STEPS) -> list[list[dict[str, Any]]]:
    """`steps` batches of two images, as Detectron2's mapper would hand them over."""
    generator = np.random.RandomState(5)
    return [[_image(generator, classes, masks) for _ in range(2)] for _ in range(steps)]


def _image(generator: np.random.RandomState, classes: int, masks: bool) -> dict[str, Any]:
    height, width = (int(side) for side in generator.randint(48, 81, 2))
    count = int(generator.randint(1, 5))
    corners = generator.uniform(0, 0.5, (count, 2)) * (width, height)
    sizes = generator.uniform(0.2, 0.5, (count, 2)) * (width, height)
    boxes = np.concatenate([corners, corners + sizes], axis=1).astype(np.float32)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.from_numpy(boxes))
    instances.gt_classes = torch.from_numpy(generator.randint(0, classes, count).astype(np.int64))
    if masks:  # a triangle in each box
        instances.gt_masks = PolygonMasks([[np.array([x0, y0, x1, y0, x0, y1], float)] for x0, y0, x1, y1 in boxes])
    pixels = generator.randint(0, 256, (3, height, width)).astype(np.uint8)
    return {"image": torch.from_numpy(pixels), "height": height, "width": width, "instances": instances}


def digest(state: dict[str, Tensor]) -> dict[str, float]:
    """Some tensors of a trained detector, each as its sum weighted by place: a tensor moved or swapped shows."""
    names = (
        "backbone.stem.conv1.weight",
        "backbone.stem.conv1.norm.running_mean",
        "backbone.res4.5.conv3.norm.running_var",
        "roi_heads.res5.2.conv3.weight",
        "roi_heads.res5.norm.weight",
        "roi_heads.res5.norm.running_var",
        "backbone.bottom_up.stem.conv1.weight",
        "backbone.bottom_up.res5.2.conv3.norm.running_var",
        "backbone.fpn_lateral3.weight",
        "backbone.fpn_output5.norm.running_mean",
        "roi_heads.box_head.conv4.norm.weight",
        "roi_heads.mask_head.mask_fcn2.norm.running_var",
        "roi_heads.box_predictor.cls_score.bias",
        "proposal_generator.rpn_head.objectness_logits.weight",
    )
    found = {}
    for name in (name for name in names if name in state):
        values = state[name].double().flatten()
        found[name] = float((values * torch.linspace(1, 2, len(values), dtype=torch.float64)).sum())
    return found
