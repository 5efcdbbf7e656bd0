"""Pipelines from an image file to augmented views. All sample the same views; `pil` is bit-exact with the original."""

from __future__ import annotations

from importlib import import_module

from pretrain.data.pipelines.base import Pipeline
from pretrain.data.pipelines.released import ReleasedPipeline

PIPELINES = {"pil": ("pil", "PILPipeline"), "opencv": ("opencv", "OpenCVPipeline"), "crops": ("device", "CropPipeline")}
"""Values of DATA.PIPELINE: module and class. OpenCV is imported only by the pipelines that use it."""


def build_pipeline(name: str, style: str = "torchvision") -> Pipeline:
    """Create a pipeline by its name in DATA.PIPELINE, and AUGMENT.STYLE."""
    module, kind = PIPELINES[name]
    pipeline: Pipeline = getattr(import_module(f"{__name__}.{module}"), kind)()
    return pipeline if style == "torchvision" else ReleasedPipeline(pipeline, style)
