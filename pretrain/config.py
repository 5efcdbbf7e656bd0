"""Load, check and compare pre-training configs (the keys: pretrain/keys.py)."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from typing import Any

from fvcore.common.config import CfgNode

from pretrain.data.augment import BOX_SAMPLERS
from pretrain.data.dataset import UNREADABLE
from pretrain.data.pipelines import PIPELINES
from pretrain.keys import KEY_CHANGES, defaults
from pretrain.methods import check_method, config_sections, method_keys, method_names
from pretrain.models.encoder import ARCHITECTURES
from pretrain.models.heads import HEAD_BNS, PREDICTORS
from pretrain.optim.optimizer import IMPLEMENTATIONS, OPTIMIZERS
from pretrain.optim.schedule import SCHEDULES, WARMUP_ENDS, peak_lr
from pretrain.rules import Rule, check_choices, check_rules, reject_unused_keys
from ssl_transfer.config import ValueSources, dotted_keys, flatten, list_changes, merge_layers, merge_strict, value_of
from ssl_transfer.errors import UserError
from ssl_transfer.formats.run_only import may_change_on_resume


def load_config(
    file: str | os.PathLike[str], overlay: str | os.PathLike[str] | None = None, overrides: Sequence[str] = ()
) -> CfgNode:
    """The config of `load_config_with_sources` alone."""
    return load_config_with_sources(file, overlay, overrides)[0]


def load_config_with_sources(
    file: str | os.PathLike[str], overlay: str | os.PathLike[str] | None = None, overrides: Sequence[str] = ()
) -> tuple[CfgNode, ValueSources]:
    """Load a config file with its `_BASE_` chain, then the overlay's `pretrain` section, then `KEY VALUE …`.

    Returns:
        The frozen config, and where its values came from.

    Raises:
        UserError: a missing file, an unknown key (with the nearest valid ones), or an invalid value.
    """
    cfg = defaults()
    sources = merge_layers(cfg, file, "pretrain", overlay, overrides, changes=KEY_CHANGES)
    try:
        check_config(cfg)
    except UserError as error:
        raise sources.locate(error) from error
    cfg.freeze()
    return cfg, sources


def differences(stored: dict[str, Any], cfg: CfgNode) -> list[str]:
    """Keys whose values differ between a run's stored config and this one, as `KEY is A there and B here`.

    Keys that may change (`ssl_transfer/formats/run_only.py`) are not compared; a key that the stored config lacks has
    its default value.
    """
    before = defaults()
    merge_strict(before, stored, "the stored config", KEY_CHANGES, recorded=True)
    now = flatten(cfg)
    return list_changes(flatten(before), now, [key for key in now if not may_change_on_resume("pretrain", key)])


def check_config(cfg: CfgNode) -> None:
    """Raise UserError for the first invalid value, naming its key and the valid values."""
    if cfg.DATA.PIPELINE == "dali":
        raise UserError("DATA.PIPELINE is dali, which was removed: no gain was measured; set it to crops or opencv")
    check_choices(cfg, {"METHOD": method_names(), **_CHOICES})
    check_rules(cfg, RULES)
    if cfg.SOLVER.BATCH_SIZE % cfg.SOLVER.GRAD_ACCUM_STEPS:
        batch, parts = cfg.SOLVER.BATCH_SIZE, cfg.SOLVER.GRAD_ACCUM_STEPS
        raise UserError(f"SOLVER.GRAD_ACCUM_STEPS is {parts}; SOLVER.BATCH_SIZE, {batch}, must be a multiple of it")
    if cfg.SOLVER.WARMUP_EPOCHS >= cfg.SOLVER.EPOCHS:
        epochs, warmup = cfg.SOLVER.EPOCHS, cfg.SOLVER.WARMUP_EPOCHS
        raise UserError(f"SOLVER.WARMUP_EPOCHS is {warmup}; it must be less than SOLVER.EPOCHS, which is {epochs}")
    _check_solver(cfg)
    if cfg.AUGMENT.STYLE != "torchvision" and cfg.DATA.PIPELINE == "crops":
        raise UserError(f"DATA.PIPELINE is crops, which AUGMENT.STYLE {cfg.AUGMENT.STYLE} lacks; set pil or opencv")
    for section in method_keys():
        if section not in config_sections(cfg.METHOD):
            reject_unused_keys(cfg, [key for key in dotted_keys(cfg) if key.startswith(f"{section}.")])
    check_method(cfg)
    if cfg.MODEL.BN_GROUP_SIZE and cfg.MODEL.SYNC_BN:
        raise UserError(
            f"MODEL.BN_GROUP_SIZE is {cfg.MODEL.BN_GROUP_SIZE}, but MODEL.SYNC_BN True normalizes all images together: "
            "set MODEL.BN_GROUP_SIZE 0, or MODEL.SYNC_BN False"
        )
    if cfg.MODEL.PROJ_BN_AFFINE and cfg.MODEL.HEAD_BN in ("none", "hidden"):
        raise UserError(
            f"MODEL.PROJ_BN_AFFINE is True, but with MODEL.HEAD_BN {cfg.MODEL.HEAD_BN} the projector's output has no BN"
        )


def _check_solver(cfg: CfgNode) -> None:
    """Check the keys of optimizer and schedule against each other."""
    solver = cfg.SOLVER
    if solver.OPTIMIZER == "sgd":
        reject_unused_keys(cfg, ["SOLVER.LARS_ETA"], _unused("SOLVER.OPTIMIZER sgd", "lars and larc do"))
    elif solver.OPTIMIZER_IMPL == "fused":
        raise UserError(
            f"SOLVER.OPTIMIZER_IMPL is 'fused', which SOLVER.OPTIMIZER {solver.OPTIMIZER} does not have; set foreach"
        )
    if solver.SCHEDULE == "steps":
        reject_unused_keys(cfg, ["SOLVER.FINAL_LR"], _unused("SOLVER.SCHEDULE steps", "the cosines do"))
        _check_steps(cfg)
    else:
        message = _unused(f"SOLVER.SCHEDULE {solver.SCHEDULE}", "steps does")
        reject_unused_keys(cfg, ["SOLVER.STEPS", "SOLVER.GAMMA"], message)
    for key in ("SOLVER.FINAL_LR", "SOLVER.WARMUP_START_LR"):
        if value_of(cfg, key) > peak_lr(cfg):
            raise UserError(f"{key} is {value_of(cfg, key):g}; the peak learning rate is less, {peak_lr(cfg):g}")
    if not solver.WARMUP_EPOCHS:
        message = "it has no effect with SOLVER.WARMUP_EPOCHS 0: leave it at {default!r}"
        reject_unused_keys(cfg, ["SOLVER.WARMUP_START_LR", "SOLVER.WARMUP_ENDS"], message)


def _unused(by: str, reader: str) -> str:
    return f"{by} does not read it ({reader}): leave it at {{default!r}}"


def _check_steps(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    if not solver.STEPS:
        raise UserError("SOLVER.STEPS is empty; SOLVER.SCHEDULE steps needs epochs, such as [30, 60, 80]")
    if solver.STEPS[-1] >= solver.EPOCHS:
        raise UserError(f"SOLVER.STEPS ends at {solver.STEPS[-1]}; it must be below SOLVER.EPOCHS, {solver.EPOCHS}")
    if solver.STEPS[0] < solver.WARMUP_EPOCHS:
        raise UserError(f"SOLVER.STEPS begins at {solver.STEPS[0]}, within SOLVER.WARMUP_EPOCHS {solver.WARMUP_EPOCHS}")


_CHOICES: dict[str, Collection[str]] = {
    "AUGMENT.STYLE": BOX_SAMPLERS,
    "DATA.PIPELINE": PIPELINES,
    "DATA.UNREADABLE": UNREADABLE,
    "ENGINE.PRECISION": ("fp32", "bf16", "fp16"),
    "MODEL.ARCH": ARCHITECTURES,
    "MODEL.PREDICTOR": PREDICTORS,
    "MODEL.HEAD_BN": HEAD_BNS,
    "SOLVER.OPTIMIZER": OPTIMIZERS,
    "SOLVER.OPTIMIZER_IMPL": IMPLEMENTATIONS,
    "SOLVER.SCHEDULE": SCHEDULES,
    "SOLVER.WARMUP_ENDS": WARMUP_ENDS,
}
"""Keys with a fixed set of values."""


def _is_range_within(low: float, high: float) -> Callable[[Any], bool]:
    return lambda pair: len(pair) == 2 and low < pair[0] <= pair[1] <= high


def _is_ascending(epochs: Sequence[int]) -> bool:
    return all(type(epoch) is int and epoch > 0 for epoch in epochs) and list(epochs) == sorted(set(epochs))


RULES: tuple[Rule, ...] = (
    ("SEED DATA.WORKERS SOLVER.WARMUP_EPOCHS CHECKPOINT.PERIOD CHECKPOINT.KEEP_EVERY", lambda v: v >= 0, "0 or more"),
    ("DATA.SIZE MODEL.PROJ_HIDDEN MODEL.DIM MODEL.PRED_DIM SOLVER.EPOCHS", lambda v: v >= 1, "1 or more"),
    ("CHECKPOINT.KEEP LOG.PERIOD MODEL.PROJ_LAYERS MONITOR.KNN.K", lambda v: v >= 1, "1 or more"),
    ("SOLVER.GRAD_ACCUM_STEPS MONITOR.COLLAPSE.STEPS", lambda v: v >= 1, "1 or more"),
    ("MONITOR.GRAD_NORM_LIMIT MONITOR.KNN.PERIOD MONITOR.KNN.RESIZE", lambda v: v >= 0, "0 or more"),
    ("MONITOR.VALIDATION.PERIOD MONITOR.VALIDATION.RESIZE", lambda v: v >= 0, "0 or more"),
    ("MONITOR.VALIDATION.FOLDER", bool, "the name of a folder below MONITOR.VALIDATION.ROOT"),
    ("MODEL.BN_GROUP_SIZE", lambda v: v == 0 or v >= 2, "0 (all), or 2 or more"),
    ("MONITOR.KNN.TRAIN MONITOR.KNN.VAL", lambda v: bool(v), "the name of a folder below MONITOR.KNN.ROOT"),
    ("MONITOR.COLLAPSE.THRESHOLD", lambda v: 0 <= v < 1, "a fraction of 1/√d, at least 0 and below 1"),
    ("SOLVER.BATCH_SIZE", lambda v: v >= 2, "2 or more (batch normalization needs two samples)"),
    ("SOLVER.BASE_LR SOLVER.LARS_ETA MONITOR.KNN.T", lambda v: v > 0, "above 0"),
    ("SOLVER.WEIGHT_DECAY SOLVER.FINAL_LR SOLVER.WARMUP_START_LR", lambda v: v >= 0, "0 or more"),
    ("SOLVER.MOMENTUM", lambda v: 0 <= v < 1, "at least 0 and below 1"),
    ("AUGMENT.JITTER_PROB AUGMENT.GRAY_PROB AUGMENT.BLUR_PROB", lambda v: 0 <= v <= 1, "a probability (0 … 1)"),
    ("AUGMENT.SOLARIZE_PROB AUGMENT.FLIP_PROB", lambda v: 0 <= v <= 1, "a probability (0 … 1)"),
    ("AUGMENT.SECOND.BLUR_PROB AUGMENT.SECOND.SOLARIZE_PROB", lambda v: v == -1 or 0 <= v <= 1, "a probability or -1"),
    ("AUGMENT.CROP_SCALE", _is_range_within(0, 1), "two fractions of the area (low, high), 0 < low ≤ high ≤ 1"),
    ("AUGMENT.BLUR_SIGMA", _is_range_within(0, 1000), "two radii (low, high), 0 < low ≤ high"),
    ("AUGMENT.JITTER", lambda v: len(v) == 4 and min(v) >= 0 and v[3] <= 0.5, "four strengths ≥ 0, the last ≤ 0.5"),
    ("DATA.INDEX_CACHE", bool, "user, none, or a folder"),
    ("SOLVER.STEPS", _is_ascending, "epochs in ascending order, such as [30, 60, 80]"),
    ("SOLVER.GAMMA", lambda v: 0 < v < 1, "above 0 and below 1"),
)
