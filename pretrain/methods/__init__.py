"""Self-supervised methods: one file each, found by its name; a new method is a new file and a config.

A method's file holds `build(cfg) -> Method`; METHOD in the config is the file's stem. It may hold `keys() -> CfgNode`,
its own keys, which are the config's section of the file's name in capitals; `READS`, the sections it reads where they
are others than that; `check(cfg)`, which raises UserError for values that it cannot do with; and `NEEDS_LABELS = True`,
where it is trained on classes. Importing this package imports no torch; asking for a method's keys does.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import TYPE_CHECKING

from fvcore.common.config import CfgNode

if TYPE_CHECKING:
    from pretrain.methods.base import Method


PARTS = ("base", "similarity")
"""Files of this folder that are no method but what methods are made of; so is all that lies in parts/."""


def names() -> list[str]:
    """Every method there is: the files of this folder but for `PARTS`."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.ispkg and m.name not in PARTS)


def method_keys() -> dict[str, CfgNode]:
    """The methods' own sections of the config, fresh, by their names."""
    found = {name: getattr(_module(name), "keys", None) for name in names()}
    return {name.upper(): keys() for name, keys in found.items() if keys is not None}


def sections_read(method: str) -> tuple[str, ...]:
    """The methods' sections that a method reads."""
    sections: tuple[str, ...] = getattr(_module(method), "READS", (method.upper(),))
    return sections


def check_method(cfg: CfgNode) -> None:
    """Raise UserError for what the method that `cfg.METHOD` names cannot do with."""
    check = getattr(_module(cfg.METHOD), "check", None)
    if check is not None:
        check(cfg)


def needs_labels(method: str) -> bool:
    """Whether a method is trained on the images' classes, which its batches then have."""
    needs: bool = getattr(_module(method), "NEEDS_LABELS", False)
    return needs


def build_method(cfg: CfgNode) -> Method:
    """The method that `cfg.METHOD` names, with random initial weights from torch's current random state."""
    method: Method = _module(cfg.METHOD).build(cfg)
    return method


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
