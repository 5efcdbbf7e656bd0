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

LEAST_DALI = (2, 2)
"""Before it, its decoder could not be told to leave images unturned by EXIF."""


def pipeline(name: str) -> Pipeline:
    """A pipeline by its name."""
    made: Pipeline = getattr(import_module(f"{__name__}.{name}"), CLASSES[name])()
    return made


def why_no_dali() -> str:
    """Why DALI, which is optional, cannot be used here; empty where it can."""
    try:
        version = str(import_module("nvidia.dali").__version__)
    except (ImportError, OSError) as error:
        return f"DALI cannot be imported ({' '.join(str(error).split()) or type(error).__name__})"
    old = tuple(map(int, version.split(".")[:2])) < LEAST_DALI
    return f"DALI is {version}, older than {'.'.join(map(str, LEAST_DALI))}" if old else ""


def check_installed(name: str) -> None:
    """Raise UserError where what a pipeline stands on is not installed."""
    if name == "dali" and (why := why_no_dali()):
        others = ", ".join(other for other in PIPELINES if other != name)
        raise UserError(f"DATA.PIPELINE is dali, but {why}; pip install '.[dali]' or take one of {others}")
