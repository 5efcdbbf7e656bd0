"""Ways from a file to two views. All draw the same views; `pil` is the released code's way, to the bit."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the config needs the names alone
    from pretrain.data.pipelines.base import Pipeline

CLASSES = {"pil": "Pil", "opencv": "OpenCV", "crops": "Crops"}
PIPELINES = tuple(CLASSES)
"""Valid values of DATA.PIPELINE: the modules of this package that hold the class beside the name."""


def pipeline(name: str) -> Pipeline:
    """A pipeline by its name."""
    made: Pipeline = getattr(import_module(f"{__name__}.{name}"), CLASSES[name])()
    return made
