"""How a config file becomes pre-training's configuration (its keys: pretrain/keys.py), and how two compare."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from fvcore.common.config import CfgNode

from common.config import dotted_keys, merge_layers, merge_strict, value_of
from pretrain.checks import check
from pretrain.keys import CHANGES, defaults

__all__ = ["FREE_ON_RESUME", "check", "defaults", "differences", "load"]

FREE_ON_RESUME = (
    *("DATA.ROOT", "DATA.LIST_ROOT", "DATA.INDEX_CACHE", "DATA.WORKERS", "LOG.PERIOD", "LOG.TENSORBOARD"),
    *("CHECKPOINT.PERIOD", "CHECKPOINT.KEEP", "CHECKPOINT.KEEP_EVERY"),
    *("MONITOR.STD_ALARM", "MONITOR.STD_ALARM_STEPS", "MONITOR.STD_ALARM_STOP", "MONITOR.GRAD_NORM_LIMIT"),
    *("MONITOR.KNN.PERIOD", "MONITOR.KNN.ROOT", "MONITOR.VALIDATION.PERIOD", "MONITOR.VALIDATION.ROOT"),
)
"""Keys that a resumed run may change: they do not change what it computes (the images themselves are compared)."""


def load(file: str | os.PathLike[str], overlay: str | None = None, overrides: Sequence[str] = ()) -> CfgNode:
    """A config file with its `_BASE_` chain, then the overlay's `pretrain` section, then `KEY VALUE …`.

    Returns:
        The frozen config.

    Raises:
        UserError: a missing file, an unknown key (with the nearest valid ones), or a value that cannot be.
    """
    cfg = defaults()
    merge_layers(cfg, file, "pretrain", overlay, overrides, changes=CHANGES)
    check(cfg)
    cfg.freeze()
    return cfg


def differences(stored: dict[str, Any], cfg: CfgNode) -> list[str]:
    """Keys whose values differ between a run's stored config and this one, as `KEY is A there and B here`.

    Keys of `FREE_ON_RESUME` are not compared; a key that the stored config lacks had its default.
    """
    before = defaults()
    merge_strict(before, stored, "the stored config", CHANGES, recorded=True)
    keys = [key for key in dotted_keys(cfg) if key not in FREE_ON_RESUME]
    pairs = [(key, value_of(before, key), value_of(cfg, key)) for key in keys]
    return [f"{key} is {old!r} there and {new!r} here" for key, old, new in pairs if old != new]
