"""Ways from a file to two views. All draw the same views; `pil` is the released code's way, to the bit."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from common.errors import UserError

if TYPE_CHECKING:  # the config needs the names alone
    from pretrain.data.pipelines.base import Pipeline

CLASSES = {"pil": "Pil", "opencv": "OpenCV", "crops": "Crops", "dali": "Dali"}
PIPELINES = tuple(CLASSES)
"""Valid values of DATA.PIPELINE: the modules of this package that hold the class beside the name."""


def pipeline(name: str) -> Pipeline:
    """A pipeline by its name."""
    made: Pipeline = getattr(import_module(f"{__name__}.{name}"), CLASSES[name])()
    return made


def why_no_dali() -> str:
    """Why DALI, which is optional, cannot be used here; empty where it can."""
    try:
        import_module("nvidia.dali")
    except (ImportError, OSError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return ""


def check_installed(name: str) -> None:
    """Raise UserError where what a pipeline stands on is not installed."""
    if name == "dali" and (why := why_no_dali()):
        others = ", ".join(other for other in PIPELINES if other != name)
        raise UserError(
            f"DATA.PIPELINE is dali, but DALI cannot be imported ({why}); pip install '.[dali]' or take one of {others}"
        )
