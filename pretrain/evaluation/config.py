"""Evaluation's configuration: every key with its default and what it means. The defaults are the released recipe."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from fvcore.common.config import CfgNode

from common.config import dotted_keys, merge_layers, value_of
from common.errors import UserError
from pretrain.rules import Rule, must_hold

KINDS = ("knn", "linear")
"""The evaluations there are."""

SECTIONS = {"knn": ("KNN",), "linear": ("LINEAR", "CHECKPOINT")}
"""Sections that one kind alone reads."""

FREE = ("DATA.WORKERS", "CHECKPOINT.PERIOD")
"""Keys that may differ when a folder is asked for again: they do not change what is computed."""


def defaults() -> CfgNode:
    """Every key with its default: facebookresearch/simsiam's main_lincls.py with --lars, and its author's kNN.

    Returns:
        A fresh, unfrozen node.
    """
    cfg = CfgNode()
    # True marks every result made with this config as made for show, not for comparison.
    cfg.TOY = False
    # The classifier's initial weights, the order of the images and their crops are functions of it.
    cfg.SEED = 0
    cfg.DATA = CfgNode()
    # The folders below --data: their first-level folders are the classes.
    cfg.DATA.TRAIN = "train"
    cfg.DATA.VAL = "val"
    # Height and width of a view in pixels.
    cfg.DATA.SIZE = 224
    # A fixed view is the centre of the image whose shorter side is scaled to this; 0 = images as they are, SIZE × SIZE.
    cfg.DATA.RESIZE = 256
    # Loader processes for each process; 0 = decode in the process itself. Any number gives the same numbers.
    cfg.DATA.WORKERS = 8
    cfg.ENGINE = CfgNode()
    # The backbone's forward pass: fp32, or autocast to bf16 or fp16. The classifier and the vote are always fp32.
    cfg.ENGINE.PRECISION = "fp32"
    # Whether the backbone and images lie in channels-last order (same numbers but for rounding).
    cfg.ENGINE.CHANNELS_LAST = False
    cfg.KNN = CfgNode()
    # Neighbours that vote, and the temperature T of their weights exp(similarity / T).
    cfg.KNN.K = 200
    cfg.KNN.T = 0.2
    cfg.LINEAR = _linear()
    cfg.CHECKPOINT = CfgNode()
    # Iterations between checkpoints; 0 = at the end of each epoch only.
    cfg.CHECKPOINT.PERIOD = 0
    return cfg


def _linear() -> CfgNode:
    node = CfgNode()
    # lars (SGD with momentum on gradients scaled layer by layer, as apex's LARC without clipping does it) or sgd.
    node.OPTIMIZER = "lars"
    # LARS: a layer's gradient is scaled by this × ‖weights‖ / ‖gradient‖.
    node.TRUST = 0.001
    # The learning rate is this × BATCH_SIZE / 256. It falls by half a cosine, once an epoch.
    node.BASE_LR = 0.1
    node.MOMENTUM = 0.9
    node.WEIGHT_DECAY = 0.0
    # Images a step over all processes; an epoch's last, smaller batch is a step too.
    node.BATCH_SIZE = 4096
    node.EPOCHS = 90
    # Training views: a random crop of this share of the area (aspect ratio 3/4 … 4/3), mirrored as often as this.
    node.CROP_SCALE = (0.08, 1.0)
    node.FLIP_PROB = 0.5
    # Whether the training features are computed once, of each image's fixed view: one pass instead of EPOCHS, but no
    # augmentation, which is another experiment; the result says so.
    node.CACHE_FEATURES = False
    return node


def load(file: str | os.PathLike[str], kind: str, overlay: str | None = None, overrides: Sequence[str] = ()) -> CfgNode:
    """A config file with its `_BASE_` chain, then the overlay's `evaluate` section, then `KEY VALUE …`.

    Returns:
        The frozen config.

    Raises:
        UserError: a missing file, an unknown key (with the nearest valid ones), a value that cannot be, or an override
            that this kind of evaluation does not read.
    """
    cfg = defaults()
    merge_layers(cfg, file, "evaluate", overlay, overrides)
    for key in overrides[::2]:
        if key not in keys_read(cfg, kind):
            raise UserError(f"command line: a {kind} evaluation does not read {key}; leave it out")
    check(cfg)
    cfg.freeze()
    return cfg


def keys_read(cfg: CfgNode, kind: str) -> list[str]:
    """The dotted keys that a kind of evaluation reads."""
    others = {section for name, sections in SECTIONS.items() if name != kind for section in sections}
    return [key for key in dotted_keys(cfg) if key.split(".")[0] not in others]


def settings(cfg: CfgNode, kind: str) -> dict[str, Any]:
    """The keys that a kind of evaluation reads, flat, with values that JSON knows."""
    values = {key: value_of(cfg, key) for key in keys_read(cfg, kind)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def check(cfg: CfgNode) -> None:
    """Raise UserError for the first value that cannot be, naming its key and what it may be."""
    must_hold(cfg, _RULES)
    if 0 < cfg.DATA.RESIZE < cfg.DATA.SIZE:
        size, resize = cfg.DATA.SIZE, cfg.DATA.RESIZE
        raise UserError(f"DATA.RESIZE is {resize}; it must be 0 or at least DATA.SIZE, which is {size}")


_RULES: tuple[Rule, ...] = (
    ("SEED DATA.WORKERS DATA.RESIZE CHECKPOINT.PERIOD", lambda v: v >= 0, "0 or more"),
    ("DATA.SIZE KNN.K LINEAR.BATCH_SIZE LINEAR.EPOCHS", lambda v: v >= 1, "1 or more"),
    ("DATA.TRAIN DATA.VAL", lambda v: bool(v), "the name of a folder below --data"),
    ("KNN.T LINEAR.BASE_LR LINEAR.TRUST", lambda v: 0 < v < math.inf, "above 0"),
    ("LINEAR.WEIGHT_DECAY", lambda v: v >= 0, "0 or more"),
    ("LINEAR.MOMENTUM", lambda v: 0 <= v < 1, "at least 0 and below 1"),
    ("LINEAR.FLIP_PROB", lambda v: 0 <= v <= 1, "a probability (0 … 1)"),
    (
        "LINEAR.CROP_SCALE",
        lambda v: len(v) == 2 and 0 < v[0] <= v[1] <= 1,
        "two shares of the area (low, high], 0 < low ≤ high ≤ 1",
    ),
    ("LINEAR.OPTIMIZER", lambda v: v in ("lars", "sgd"), "lars or sgd"),
    ("ENGINE.PRECISION", lambda v: v in ("fp32", "bf16", "fp16"), "fp32, bf16 or fp16"),
)
