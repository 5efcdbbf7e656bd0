"""The backbone file (`backbone/1`): metadata of a safetensors file or of a converted `.pth`, and preprocessing."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator

from common.formats import FileFormat

BACKBONE_FORMAT = "backbone/1"
PTH_METADATA = "backbone_metadata"
"""Attribute of a converted `.pth`'s OrderedDict that holds what a safetensors file has as metadata."""

Branch = Literal["online", "target"]
Positive = Annotated[float, Field(gt=0)]


class Preprocessing(FileFormat):
    """How an image becomes the network's input; stored with the weights."""

    model_config = ConfigDict(extra="forbid")

    channel_order: Literal["RGB", "BGR"] = Field(description="order of the input's channels")
    mean: tuple[float, float, float] = Field(
        strict=False, description="subtracted from values of 0…255, in `channel_order`"
    )
    std: tuple[Positive, Positive, Positive] = Field(
        strict=False, description="divides the difference, in `channel_order`"
    )
    stride_in_1x1: bool = Field(
        description="whether a stage's stride is in the first 1×1 convolution (Caffe) or in the 3×3 (torchvision)"
    )


TORCHVISION = Preprocessing(
    channel_order="RGB", mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), stride_in_1x1=False
)
"""ImageNet mean and standard deviation in RGB, as torchvision and most self-supervised repositories use."""

MSRA = Preprocessing(channel_order="BGR", mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0), stride_in_1x1=True)
"""Caffe's preprocessing: BGR, no division, stride in the 1×1 (Detectron2's defaults)."""


class BackboneMetadata(FileFormat):
    """The metadata, which are strings: `preprocessing`, `manifest` and `origin` hold JSON."""

    format: Literal["backbone/1"] = Field(default="backbone/1", description="`backbone/1`")
    arch: str = Field(description="`resnet50`, `resnet18_cifar`, …")
    branch: Branch = Field(description="`online`, or `target` for the momentum encoder of a method that has one")
    preprocessing: Preprocessing = Field(description="how images are prepared for these weights")
    manifest: dict[str, Any] | None = Field(
        default=None, description="the manifest (`manifest/1`); only in files that tools/convert.py wrote"
    )
    origin: dict[str, Any] | None = Field(
        default=None,
        description=(
            "how the weights were trained: `method`, `recipe` (stem of the config file), `epochs`, `epoch`, "
            "`iteration`, `config` (resolved YAML text), `toy`, `commit`, `versions`"
        ),
    )

    @field_validator("preprocessing", "manifest", "origin", mode="before")
    @classmethod
    def _decode(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError("is not JSON") from error

    def encode(self) -> dict[str, str]:
        """The strings that a safetensors header holds."""
        strings = {"format": self.format, "arch": self.arch, "branch": self.branch}
        strings["preprocessing"] = json.dumps(self.preprocessing.as_dict(), sort_keys=True)
        if self.manifest is not None:
            strings["manifest"] = json.dumps(self.manifest)
        if self.origin is not None:
            strings["origin"] = json.dumps(self.origin, sort_keys=True)
        return strings
