"""ResNets: tensor names (torchvision's) and shapes by depth; `Backbone`, what every checkpoint becomes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ssl_transfer.formats.backbone import Preprocessing
from ssl_transfer.formats.manifest import DroppedTensor, SourceFile

Shape = tuple[int, ...]

BASIC: dict[str, Shape] = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
BOTTLENECK: dict[str, Shape] = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}
BLOCKS = BASIC | BOTTLENECK
"""Blocks in each of the four stages (He et al., arXiv 1512.03385, Table 1)."""

EXPANSION = 4
"""Channels that a bottleneck block puts out for each of its 3×3 convolution; a basic block has one."""
COUNTER = "num_batches_tracked"
NORM_PARTS = ("weight", "bias", "running_mean", "running_var")


@dataclass(kw_only=True)
class Backbone:
    """A ResNet's backbone.

    Attributes:
        arch: one of `BLOCKS`.
        tensors: torchvision name → float32 tensor on the CPU; exactly `tensor_shapes(arch)`.
        preprocessing: how images are prepared for these weights.
        source: the file it was read from.
        origin: how it was trained, where the file says so (docs/reference/formats.md).
        dropped: what else the file contained, and why it is not used.
        converted_up: names of tensors that were float16 or bfloat16 in the file.
        warnings: what the user should know; one line each.
    """

    arch: str
    tensors: dict[str, torch.Tensor]
    preprocessing: Preprocessing
    source: SourceFile
    origin: dict[str, Any] | None = None
    dropped: list[DroppedTensor] = field(default_factory=list)
    converted_up: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def depth_of(arch: str) -> int:
    """The depth in an architecture's name: 50 for `resnet50`."""
    return int(arch.removeprefix("resnet"))


def tensor_shapes(arch: str) -> dict[str, Shape]:
    """Name → shape of every tensor of the backbone, in forward order, without classifier and counters.

    Args:
        arch: one of `BLOCKS`.

    Returns:
        265 tensors for `resnet50` (53 convolutions and 53 norms), 100 for `resnet18`, 180 for `resnet34`.
    """
    shapes: dict[str, Shape] = {}
    _add_conv_and_norm(shapes, "conv1", "bn1", (64, 3, 7, 7))
    channels = 64
    basic = arch in BASIC
    for stage, blocks in enumerate(BLOCKS[arch], start=1):
        width = 64 * 2 ** (stage - 1)
        for block in range(blocks):
            at = f"layer{stage}.{block}."
            out, first = (width, 3) if basic else (width * EXPANSION, 1)
            _add_conv_and_norm(shapes, at + "conv1", at + "bn1", (width, channels, first, first))
            _add_conv_and_norm(shapes, at + "conv2", at + "bn2", (width, width, 3, 3))
            if not basic:
                _add_conv_and_norm(shapes, at + "conv3", at + "bn3", (out, width, 1, 1))
            if block == 0 and (stage > 1 or not basic):
                _add_conv_and_norm(shapes, at + "downsample.0", at + "downsample.1", (out, channels, 1, 1))
            channels = out
    return shapes


def _add_conv_and_norm(shapes: dict[str, Shape], conv: str, norm: str, shape: Shape) -> None:
    shapes[f"{conv}.weight"] = shape
    shapes.update({f"{norm}.{part}": shape[:1] for part in NORM_PARTS})


def counter_names(arch: str) -> list[str]:
    """The names of the norms' `num_batches_tracked`: 53 for `resnet50`."""
    return [name.replace("running_var", COUNTER) for name in tensor_shapes(arch) if name.endswith("running_var")]


def guess_arch(names: Iterable[str]) -> str | None:
    """The architecture with such blocks and as many in the third stage as these names have; None if there is none."""
    third = [name for name in names if name.startswith("layer3.") and name.count(".") > 1]
    archs = BOTTLENECK if any(".conv3." in name for name in third) else BASIC
    blocks = {name.split(".")[1] for name in third}
    return next((arch for arch, counts in archs.items() if counts[2] == len(blocks)), None)


def explain_mismatch(tensors: Mapping[str, Shape]) -> str | None:
    """Which kind of unsupported ResNet these tensors are; None if no such kind is recognised.

    Args:
        tensors: torchvision name → shape.
    """
    if "conv1.0.weight" in tensors or "stem.0.weight" in tensors:
        return "a ResNet with a deep stem (such as resnet50d: it has conv1.0.weight)"
    if any(name.endswith((".se.fc1.weight", ".attn.fc1.weight", ".se_module.fc1.weight")) for name in tensors):
        return "a ResNet with squeeze-and-excitation"
    stem = tensors.get("conv1.weight")
    small_stem = stem is not None and stem[2:] == (3, 3)
    if small_stem:
        return "a ResNet with a CIFAR stem (conv1 is 3×3)"
    if "layer1.0.conv1.weight" in tensors and "layer1.0.conv3.weight" not in tensors and guess_arch(tensors) is None:
        return "a ResNet of basic blocks (no layer1.0.conv3), neither ResNet-18 nor ResNet-34"
    return _explain_width(tensors)


def _explain_width(tensors: Mapping[str, Shape]) -> str | None:
    middle = tensors.get("layer1.0.conv2.weight")
    if middle is None or len(middle) != 4 or middle == (64, 64, 3, 3):
        return None
    if middle[1] < middle[0]:
        return f"a ResNeXt (grouped convolution: layer1.0.conv2.weight is {list(middle)})"
    if middle[0] > 64:
        return f"a wide ResNet (layer1.0.conv2.weight is {list(middle)}, not [64, 64, 3, 3])"
    return None
