"""Configuration of evaluations: every key with its default and meaning. The defaults are the released recipe."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from fvcore.common.config import CfgNode

from pretrain.rules import Rule, check_rules
from ssl_transfer.config import ValueSources, dotted_keys, flatten_config, merge_layers
from ssl_transfer.errors import UserError

SECTIONS = {"knn": ("KNN",), "linear": ("LINEAR", "CHECKPOINT")}
"""Sections that only one kind reads."""


def defaults() -> CfgNode:
    """Every key with its default: facebookresearch/simsiam's main_lincls.py with --lars, and its author's kNN.

    Returns:
        A fresh, unfrozen node.
    """
    cfg = CfgNode()
    # True marks every result made with this config as a toy, which compares with nothing.
    cfg.TOY = False
    # Seed of the classifier's initial weights, the order of the images and their crops.
    cfg.SEED = 0
    cfg.DATA = CfgNode()
    # Folders of the splits below --data; the folders in them are the classes.
    cfg.DATA.TRAIN = "train"
    cfg.DATA.VAL = "val"
    # Height and width of a view in pixels.
    cfg.DATA.SIZE = 224
    # Fixed views: the shorter side is scaled to this, then the center is cropped; 0: images are SIZE × SIZE already.
    cfg.DATA.RESIZE = 256
    # Loader workers of each process; 0: decode in the process itself. The result does not depend on it.
    cfg.DATA.WORKERS = 8
    cfg.ENGINE = CfgNode()
    # Precision of the backbone's forward pass: fp32, or autocast to bf16 or fp16. The rest is always fp32.
    cfg.ENGINE.PRECISION = "fp32"
    # Use the channels-last memory format (same numbers except for rounding).
    cfg.ENGINE.CHANNELS_LAST = False
    cfg.KNN = CfgNode()
    # Number of neighbors that vote, and the temperature T of their weights exp(similarity / T).
    cfg.KNN.K = 200
    cfg.KNN.T = 0.2
    cfg.LINEAR = _linear()
    cfg.CHECKPOINT = CfgNode()
    # Iterations between checkpoints; 0: only at the end of each epoch.
    cfg.CHECKPOINT.PERIOD = 0
    cfg.MONITOR = CfgNode()
    # A process without a sign of life for so many seconds (or for 10 batches, where these take longer) writes the
    # stacks of its threads and workers and exits with 75, so that the launcher can requeue the run; 0: never.
    cfg.MONITOR.HANG_SECONDS = 300.0
    # How many seconds a collective operation waits for the other processes.
    cfg.MONITOR.COLLECTIVE_SECONDS = 600.0
    return cfg


def _linear() -> CfgNode:
    node = CfgNode()
    # lars (apex's LARC without clipping: SGD with momentum on gradients scaled layer by layer) or sgd.
    node.OPTIMIZER = "lars"
    # LARS: a layer's gradient is scaled by this × ‖weights‖ / ‖gradient‖.
    node.TRUST = 0.001
    # The learning rate is this × BATCH_SIZE / 256; a cosine schedule lowers it once per epoch.
    node.BASE_LR = 0.1
    node.MOMENTUM = 0.9
    node.WEIGHT_DECAY = 0.0
    # Images per step over all processes; an epoch's last, smaller batch is not dropped.
    node.BATCH_SIZE = 4096
    node.EPOCHS = 90
    # Training views: a random crop of this share of the area (aspect ratio 3/4 … 4/3), mirrored with this probability.
    node.CROP_SCALE = (0.08, 1.0)
    node.FLIP_PROB = 0.5
    # Compute the training features once, of each image's fixed view: one pass instead of EPOCHS, but without
    # augmentation. That is another experiment, and the result says so.
    node.CACHE_FEATURES = False
    return node


def load_evaluation_config(
    file: str | os.PathLike[str],
    kind: str,
    overlay: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> tuple[CfgNode, ValueSources]:
    """Merge a config file with its `_BASE_` chain, the overlay's `evaluate` section and `KEY VALUE …`.

    Returns:
        The frozen config, and where its values came from.

    Raises:
        UserError: a missing file, an unknown key (with similar valid ones), an invalid value, or an override that this
            kind of evaluation does not read.
    """
    cfg = defaults()
    sources = merge_layers(cfg, file, "evaluate", overlay, overrides)
    for key in overrides[::2]:
        if key not in keys_read(cfg, kind):
            raise UserError(f"command line: a {kind} evaluation does not read {key}; leave it out")
    try:
        check_evaluation_config(cfg)
    except UserError as error:
        raise sources.locate(error) from error
    cfg.freeze()
    return cfg, sources


def keys_read(cfg: CfgNode, kind: str) -> list[str]:
    others = {section for name, sections in SECTIONS.items() if name != kind for section in sections}
    return [key for key in dotted_keys(cfg) if key.split(".")[0] not in others]


def flat_settings(cfg: CfgNode, kind: str) -> dict[str, Any]:
    """The keys that a kind of evaluation reads, dotted, with JSON values."""
    values = flatten_config(cfg)
    return {key: values[key] for key in keys_read(cfg, kind)}


def check_evaluation_config(cfg: CfgNode) -> None:
    """Raise UserError for the first invalid value, naming its key and the valid values."""
    check_rules(cfg, _RULES)
    if 0 < cfg.DATA.RESIZE < cfg.DATA.SIZE:
        size, resize = cfg.DATA.SIZE, cfg.DATA.RESIZE
        raise UserError(f"DATA.RESIZE is {resize}; it must be 0 or at least DATA.SIZE, which is {size}")


_RULES: tuple[Rule, ...] = (
    ("SEED DATA.WORKERS DATA.RESIZE CHECKPOINT.PERIOD MONITOR.HANG_SECONDS", lambda v: v >= 0, "0 or more"),
    ("DATA.SIZE KNN.K LINEAR.BATCH_SIZE LINEAR.EPOCHS", lambda v: v >= 1, "1 or more"),
    ("DATA.TRAIN DATA.VAL", lambda v: bool(v), "the name of a folder below --data"),
    ("KNN.T LINEAR.BASE_LR LINEAR.TRUST MONITOR.COLLECTIVE_SECONDS", lambda v: 0 < v < math.inf, "above 0"),
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
