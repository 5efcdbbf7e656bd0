"""Learning rates and parameter groups."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fvcore.common.config import CfgNode

from pretrain.config import defaults
from pretrain.methods import build_method
from pretrain.optim.optimizer import build_sgd, param_groups, set_lr
from pretrain.optim.schedule import CosineByEpoch, build_schedule, peak_lr


def test_cosine_falls_once_per_epoch() -> None:
    schedule = CosineByEpoch(0.4, epochs=5, steps_per_epoch=3)
    for iteration in range(15):
        expected = 0.4 * 0.5 * (1 + math.cos(math.pi * (iteration // 3) / 5))
        assert schedule.at(iteration) == pytest.approx(expected, rel=1e-15)
    assert schedule.at(0) == 0.4 and schedule.at(14) > 0


def test_warm_up_rises_to_the_peak_before_the_cosine() -> None:
    schedule = CosineByEpoch(2.0, epochs=10, steps_per_epoch=4, warmup_epochs=2)
    assert [schedule.at(i) for i in range(8)] == pytest.approx([0.25 * (i + 1) for i in range(8)])
    assert schedule.at(8) == 2.0
    assert schedule.at(12) == pytest.approx(1 + math.cos(math.pi / 8))
    assert schedule.at(39) == pytest.approx(1 + math.cos(math.pi * 7 / 8))


def _solver(**solver: object) -> CfgNode:
    cfg = defaults()
    cfg.SOLVER.update(solver)
    return cfg


def _rates(cfg: CfgNode, steps: int) -> list[float]:
    schedule = build_schedule(cfg, steps)
    return [schedule.at(i) for i in range(cfg.SOLVER.EPOCHS * steps)]


def _apart(ours: list[float], theirs: list[float]) -> float:
    assert len(ours) == len(theirs)
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / max(theirs)


SIMCLR = {
    "BASE_LR": 0.3,
    "BATCH_SIZE": 4096,
    "EPOCHS": 40,
    "SCHEDULE": "cosine_by_step",
    "WARMUP_EPOCHS": 10,
    "WARMUP_ENDS": "first",
}
SWAV = {**SIMCLR, "WARMUP_START_LR": 0.3, "WARMUP_ENDS": "both", "FINAL_LR": 0.0048}


def test_simclrs_and_byols_cosine() -> None:
    """simclr model_util.py, byol/utils/schedules.py: k/n of the peak, then a cosine over the K − n that are left."""
    steps, warmup, total = 7, 70, 280
    theirs = [4.8 * k / warmup for k in range(warmup)]
    theirs += [4.8 * 0.5 * (1 + math.cos(math.pi * (k - warmup) / (total - warmup))) for k in range(warmup, total)]
    assert _apart(_rates(_solver(**SIMCLR), steps), theirs) < 1e-15
    assert _rates(_solver(**SIMCLR), steps)[0] == 0
    for other in ({"WARMUP_ENDS": "last"}, {"WARMUP_ENDS": "both"}, {"SCHEDULE": "cosine_by_epoch"}, {"FINAL_LR": 0.1}):
        assert _apart(_rates(_solver(**{**SIMCLR, **other}), steps), theirs) > 1e-3


def test_swavs_cosine() -> None:
    """main_swav.py: linspace from 0.3 to 4.8, both included, then a cosine from 4.8 to 0.0048."""
    steps, warmup, total = 7, 70, 280
    t = np.arange(total - warmup)
    cosine = 0.0048 + 0.5 * (4.8 - 0.0048) * (1 + np.cos(np.pi * t / (total - warmup)))
    theirs = np.concatenate([np.linspace(0.3, 4.8, warmup), cosine]).tolist()
    assert _apart(_rates(_solver(**SWAV), steps), theirs) < 1e-15
    assert (theirs[0], theirs[69], theirs[70]) == (0.3, 4.8, 4.8)
    for other in ({"WARMUP_ENDS": "first"}, {"WARMUP_START_LR": 0.0}, {"FINAL_LR": 0.0}):
        assert _apart(_rates(_solver(**{**SWAV, **other}), steps), theirs) > 9e-4


def test_learning_rate_falls_in_steps() -> None:
    steps = {"BASE_LR": 0.1, "EPOCHS": 90, "SCHEDULE": "steps", "STEPS": (30, 60, 80)}
    rates = _rates(_solver(**steps), 3)
    expected = [0.1] * 90 + [0.01] * 90 + [0.001] * 60 + [0.0001] * 30
    assert rates == pytest.approx(expected, rel=1e-12)
    warm = _rates(_solver(**steps, WARMUP_EPOCHS=5, GAMMA=0.5, WARMUP_ENDS="first"), 2)
    assert warm[:11] == pytest.approx([0.01 * k for k in range(11)]) and warm[59:61] == pytest.approx([0.1, 0.05])


def test_a_warm_up_of_one_step_is_defined() -> None:
    for ends, first in (("last", 4.8), ("first", 0.3), ("both", 0.3)):
        assert build_schedule(_solver(**{**SWAV, "WARMUP_EPOCHS": 1, "WARMUP_ENDS": ends}), 1).at(0) == first


@pytest.mark.parametrize(
    ("base", "batch", "peak"), [(0.05, 256, 0.05), (0.05, 512, 0.1), (0.5, 256, 0.5), (0.03, 64, 0.0075)]
)
def test_linear_scaling(base: float, batch: int, peak: float) -> None:
    cfg = defaults()
    cfg.SOLVER.BASE_LR, cfg.SOLVER.BATCH_SIZE = base, batch
    assert peak_lr(cfg) == pytest.approx(peak)


def _method() -> torch.nn.Module:
    cfg = defaults()
    cfg.MODEL.update(ARCH="resnet18", PROJ_HIDDEN=8, DIM=8, PRED_DIM=4)
    with torch.device("meta"):
        return build_method(cfg)


@pytest.mark.parametrize("fixed", [True, False])
def test_predictor_keeps_its_rate_only_with_fix_pred_lr(fixed: bool) -> None:
    cfg = defaults()
    cfg.SOLVER.FIX_PRED_LR = fixed
    optimizer = build_sgd(_method(), cfg)
    schedule = CosineByEpoch(0.05, epochs=100, steps_per_epoch=1, warmup_epochs=10)
    for iteration in (0, 50, 99):
        set_lr(optimizer, schedule, iteration)
        base, predictor = (group["lr"] for group in optimizer.param_groups)
        assert base == schedule.at(iteration) != 0.05
        assert predictor == (0.05 if fixed else base)


def test_groups_contain_each_trained_parameter_once_with_decay() -> None:
    method = _method()
    groups = param_groups(method, True)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in method.parameters() if p.requires_grad)
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in method.predictor.parameters()}
    assert id(method.projector[6].bias) not in held
    optimizer = build_sgd(method, defaults())
    assert {group["weight_decay"] for group in optimizer.param_groups} == {1e-4}
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}


def test_method_without_predictor_has_one_group() -> None:
    method = _method()
    method.predictor = None
    assert [group["name"] for group in param_groups(method, True)] == ["base"]
