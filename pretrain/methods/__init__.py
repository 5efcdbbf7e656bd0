"""Self-supervised methods: one file each, found by name; a new method is a new file and a config.

METHOD in the config is the stem of the method's file, which defines `build(cfg) -> Method`. Optional definitions:
`keys() -> CfgNode`, the method's config section, named like the file in upper case; `CONFIG_SECTIONS`, the sections
that it reads instead; `check(cfg)`, which raises UserError for invalid values; and `NEEDS_LABELS = True`, if it is
trained on labels.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import TYPE_CHECKING

from fvcore.common.config import CfgNode

if TYPE_CHECKING:
    from pretrain.methods.base import Method


def method_names() -> list[str]:
    """Names of all methods: the files of this folder except `base`."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.ispkg and m.name != "base")


def method_keys() -> dict[str, CfgNode]:
    """Fresh default values of the methods' config sections, by section name."""
    found = {name: getattr(_module(name), "keys", None) for name in method_names()}
    return {name.upper(): keys() for name, keys in found.items() if keys is not None}


def config_sections(method: str) -> tuple[str, ...]:
    """The methods' config sections that a method reads."""
    sections: tuple[str, ...] = getattr(_module(method), "CONFIG_SECTIONS", (method.upper(),))
    return sections


def check_method(cfg: CfgNode) -> None:
    """Raise UserError for values that the method selected by `cfg.METHOD` does not support."""
    check = getattr(_module(cfg.METHOD), "check", None)
    if check is not None:
        check(cfg)


def needs_labels(method: str) -> bool:
    """Whether a method is trained on the images' classes, which `Batch.labels` then holds."""
    needs: bool = getattr(_module(method), "NEEDS_LABELS", False)
    return needs


def build_method(cfg: CfgNode) -> Method:
    """The method selected by `cfg.METHOD`, with random weights from torch's current random state."""
    method: Method = _module(cfg.METHOD).build(cfg)
    return method


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
