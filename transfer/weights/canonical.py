"""The one form every checkpoint is brought to: torchvision-named float32 tensors, preprocessing and origin."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from common.errors import UserError, nearest


@dataclass(frozen=True)
class Preprocessing:
    """What must be done to an image before it enters the net; it travels with the weights.

    Attributes:
        channel_order: `RGB` or `BGR`.
        mean: subtracted from 0…255 values, in `channel_order`.
        std: divided by, in `channel_order`.
        stride_in_1x1: whether a stage's stride lies on the first 1×1 convolution (Caffe) or on the 3×3 (torchvision).
    """

    channel_order: str = "RGB"
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    stride_in_1x1: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain types, as the manifest and the backbone file hold them."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, value: Any, where: str) -> Preprocessing:
        """Read the block back.

        Raises:
            UserError: a key is missing, unknown or of another type.
        """
        keys = ("channel_order", "mean", "std", "stride_in_1x1")
        if not isinstance(value, dict):
            raise UserError(f"{where}: the preprocessing block must hold {', '.join(keys)}")
        for key in value:
            if key not in keys:
                raise UserError(f"{where}: unknown preprocessing key {key!r}; {nearest(str(key), keys)}")
        if value.get("channel_order") not in ("RGB", "BGR"):
            raise UserError(
                f"{where}: preprocessing.channel_order must be RGB or BGR, not {value.get('channel_order')!r}"
            )
        if not isinstance(value.get("stride_in_1x1"), bool):
            raise UserError(f"{where}: preprocessing.stride_in_1x1 must be true or false")
        return cls(
            value["channel_order"], _triple(value, "mean", where), _triple(value, "std", where), value["stride_in_1x1"]
        )


def _triple(value: dict[str, Any], key: str, where: str) -> tuple[float, ...]:
    numbers = value.get(key)
    good = isinstance(numbers, list) and len(numbers) == 3 and all(type(n) in (int, float) for n in numbers)
    if not good or (key == "std" and min(numbers) <= 0):  # type: ignore[arg-type]
        raise UserError(f"{where}: preprocessing.{key} must be three numbers{' above 0' if key == 'std' else ''}")
    return tuple(float(n) for n in numbers)  # type: ignore[union-attr]


TORCHVISION = Preprocessing()
"""ImageNet mean and std on RGB, as torchvision and nearly every self-supervised repository train."""

MSRA = Preprocessing("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0), True)
"""Caffe's: BGR, no division, stride on the 1×1 (Detectron2's defaults)."""


@dataclass(frozen=True)
class Source:
    """Where a backbone was read from.

    Attributes:
        path: the file as the user named it.
        sha256: the file's digest, hex.
        bytes: the file's size.
        layout: the reader that took it.
        rule: why that reader took it, in words.
        branch: `online` or `target`.
    """

    path: str
    sha256: str
    bytes: int
    layout: str
    rule: str
    branch: str


@dataclass(frozen=True)
class LeftOut:
    """A tensor, or a group of them, that the backbone does not need."""

    name: str
    why: str


@dataclass
class Backbone:
    """A ResNet's backbone.

    Attributes:
        arch: `resnet50`, `resnet101` or `resnet152`.
        tensors: torchvision name → float32 tensor on the CPU; exactly `architecture.shapes(arch)`.
        preprocessing: what its images need.
        source: the file it came from.
        origin: how it was trained, when the file says so (docs/reference/formats.md).
        left_out: what the file held besides, and why it was left.
        converted_up: names of tensors that were of a narrower type in the file.
        warnings: what the user should know; one line each.
    """

    arch: str
    tensors: dict[str, torch.Tensor]
    preprocessing: Preprocessing
    source: Source
    origin: dict[str, Any] | None = None
    left_out: list[LeftOut] = field(default_factory=list)
    converted_up: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
