"""What the values of a configuration may be: the first that cannot be is named, with what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fvcore.common.config import CfgNode

from common.config import dotted_keys
from common.errors import UserError
from pretrain.data.pipelines import PIPELINES
from pretrain.methods import check_method, method_keys, sections_read
from pretrain.methods import names as method_names
from pretrain.models import ARCHITECTURES, HEAD_BNS, PREDICTORS
from pretrain.optim.checks import check as check_solver
from pretrain.rules import Rule, must_be_named, must_hold, must_keep_default


def check(cfg: CfgNode) -> None:
    """Raise UserError for the first value that cannot be, naming its key and what it may be."""
    if cfg.DATA.PIPELINE == "dali":
        raise UserError("DATA.PIPELINE is dali, which was removed: no gain was measured; set it to crops or opencv")
    must_be_named(cfg, {"METHOD": method_names(), **_NAMES})
    must_hold(cfg, RULES)
    if cfg.SOLVER.BATCH_SIZE % cfg.SOLVER.ACCUMULATE:
        batch, parts = cfg.SOLVER.BATCH_SIZE, cfg.SOLVER.ACCUMULATE
        raise UserError(f"SOLVER.ACCUMULATE is {parts}; SOLVER.BATCH_SIZE, {batch}, must be a multiple of it")
    if cfg.SOLVER.WARMUP_EPOCHS >= cfg.SOLVER.EPOCHS:
        epochs, warmup = cfg.SOLVER.EPOCHS, cfg.SOLVER.WARMUP_EPOCHS
        raise UserError(f"SOLVER.WARMUP_EPOCHS is {warmup}; it must be less than SOLVER.EPOCHS, which is {epochs}")
    check_solver(cfg)
    _check_combination(cfg)


def _check_combination(cfg: CfgNode) -> None:
    """Raise UserError for values that contradict one another or that nothing would read."""
    for section in method_keys():
        if section not in sections_read(cfg.METHOD):
            must_keep_default(cfg, [key for key in dotted_keys(cfg) if key.startswith(f"{section}.")])
    check_method(cfg)
    if cfg.MODEL.BN_IMAGES and cfg.MODEL.SYNC_BN:
        raise UserError(
            f"MODEL.BN_IMAGES is {cfg.MODEL.BN_IMAGES}, and MODEL.SYNC_BN True normalises all images together: "
            "set MODEL.BN_IMAGES 0, or MODEL.SYNC_BN False"
        )
    if cfg.MODEL.PROJ_BN_AFFINE and cfg.MODEL.HEAD_BN in ("none", "hidden"):
        raise UserError(
            f"MODEL.PROJ_BN_AFFINE is True, but with MODEL.HEAD_BN {cfg.MODEL.HEAD_BN} the projector's output has no BN"
        )


_NAMES = {
    "DATA.PIPELINE": PIPELINES,
    "DATA.UNREADABLE": ("error", "replace"),
    "MODEL.ARCH": ARCHITECTURES,
    "MODEL.PREDICTOR": PREDICTORS,
    "MODEL.HEAD_BN": HEAD_BNS,
}
"""Keys whose values are names."""


def _range_within(low: float, high: float) -> Callable[[Any], bool]:
    return lambda pair: len(pair) == 2 and low < pair[0] <= pair[1] <= high


RULES: tuple[Rule, ...] = (
    ("SEED DATA.WORKERS SOLVER.WARMUP_EPOCHS CHECKPOINT.PERIOD CHECKPOINT.KEEP_EVERY", lambda v: v >= 0, "0 or more"),
    ("DATA.SIZE MODEL.PROJ_HIDDEN MODEL.DIM MODEL.PRED_DIM SOLVER.EPOCHS", lambda v: v >= 1, "1 or more"),
    ("CHECKPOINT.KEEP LOG.PERIOD MODEL.PROJ_LAYERS", lambda v: v >= 1, "1 or more"),
    ("SOLVER.ACCUMULATE MONITOR.STD_ALARM_STEPS", lambda v: v >= 1, "1 or more"),
    ("MONITOR.GRAD_NORM_LIMIT MONITOR.KNN.PERIOD MONITOR.KNN.RESIZE", lambda v: v >= 0, "0 or more"),
    ("MONITOR.VALIDATION.PERIOD MONITOR.VALIDATION.RESIZE", lambda v: v >= 0, "0 or more"),
    ("MONITOR.VALIDATION.FOLDER", bool, "the name of a folder below MONITOR.VALIDATION.ROOT"),
    ("MONITOR.KNN.K", lambda v: v >= 1, "1 or more"),
    ("MODEL.BN_IMAGES", lambda v: v == 0 or v >= 2, "0 (all), or 2 or more"),
    ("MONITOR.KNN.T", lambda v: v > 0, "above 0"),
    ("MONITOR.KNN.TRAIN MONITOR.KNN.VAL", lambda v: bool(v), "the name of a folder below MONITOR.KNN.ROOT"),
    ("MONITOR.STD_ALARM", lambda v: 0 <= v < 1, "a share of 1/√d, at least 0 and below 1"),
    ("SOLVER.BATCH_SIZE", lambda v: v >= 2, "2 or more (batch normalisation needs two samples)"),
    ("SOLVER.BASE_LR", lambda v: v > 0, "above 0"),
    ("SOLVER.WEIGHT_DECAY", lambda v: v >= 0, "0 or more"),
    ("SOLVER.MOMENTUM", lambda v: 0 <= v < 1, "at least 0 and below 1"),
    ("AUGMENT.JITTER_PROB AUGMENT.GRAY_PROB AUGMENT.BLUR_PROB", lambda v: 0 <= v <= 1, "a probability (0 … 1)"),
    ("AUGMENT.SOLARIZE_PROB AUGMENT.FLIP_PROB", lambda v: 0 <= v <= 1, "a probability (0 … 1)"),
    ("AUGMENT.SECOND.BLUR_PROB AUGMENT.SECOND.SOLARIZE_PROB", lambda v: v == -1 or 0 <= v <= 1, "a probability or -1"),
    ("AUGMENT.CROP_SCALE", _range_within(0, 1), "two shares of the area (low, high], 0 < low ≤ high ≤ 1"),
    ("AUGMENT.BLUR_SIGMA", _range_within(0, 1000), "two radii (low, high), 0 < low ≤ high"),
    ("AUGMENT.JITTER", lambda v: len(v) == 4 and min(v) >= 0 and v[3] <= 0.5, "four strengths ≥ 0, the last ≤ 0.5"),
    ("DATA.INDEX_CACHE", bool, "user, none, or a folder"),
    ("SOLVER.IMPLEMENTATION", lambda v: v in ("for-loop", "foreach", "fused"), "for-loop, foreach or fused"),
    ("ENGINE.PRECISION", lambda v: v in ("fp32", "bf16", "fp16"), "fp32, bf16 or fp16"),
)
