"""Self-supervised methods: one file each, found by its name; a new method is a new file and a config.

A method's file holds `build(cfg) -> Method`; METHOD in the config is the file's stem. Importing this package imports no
torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from fvcore.common.config import CfgNode

if TYPE_CHECKING:
    from pretrain.methods.base import Method


PARTS = ("base", "similarity")
"""Files of this folder that are no method but what methods are made of."""


def names() -> list[str]:
    """Every method there is: the files of this folder but for `PARTS`."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in PARTS)


def build_method(cfg: CfgNode) -> Method:
    """The method that `cfg.METHOD` names, with random initial weights from torch's current random state."""
    method: Method = importlib.import_module(f"{__name__}.{cfg.METHOD}").build(cfg)
    return method
