"""Learning rates and parameter groups."""

from __future__ import annotations

import math

import pytest
import torch

from pretrain.config import defaults
from pretrain.methods import build_method
from pretrain.optim.schedule import CosineByEpoch, peak_lr
from pretrain.optim.sgd import build_sgd, param_groups, set_lr


def test_cosine_falls_once_an_epoch() -> None:
    schedule = CosineByEpoch(0.4, epochs=5, steps_per_epoch=3)
    for iteration in range(15):
        expected = 0.4 * 0.5 * (1 + math.cos(math.pi * (iteration // 3) / 5))
        assert schedule.at(iteration) == pytest.approx(expected, rel=1e-15)
    assert schedule.at(0) == 0.4 and schedule.at(14) > 0


def test_warm_up_grows_to_the_peak_then_the_cosine_takes_the_rest() -> None:
    schedule = CosineByEpoch(2.0, epochs=10, steps_per_epoch=4, warmup_epochs=2)
    assert [schedule.at(i) for i in range(8)] == pytest.approx([0.25 * (i + 1) for i in range(8)])
    assert schedule.at(8) == 2.0
    assert schedule.at(12) == pytest.approx(1 + math.cos(math.pi / 8))
    assert schedule.at(39) == pytest.approx(1 + math.cos(math.pi * 7 / 8))


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
def test_the_predictor_keeps_its_rate_only_when_asked(fixed: bool) -> None:
    cfg = defaults()
    cfg.SOLVER.FIX_PRED_LR = fixed
    optimizer = build_sgd(_method(), cfg)
    schedule = CosineByEpoch(0.05, epochs=100, steps_per_epoch=1, warmup_epochs=10)
    for iteration in (0, 50, 99):
        set_lr(optimizer, schedule, iteration)
        base, predictor = (group["lr"] for group in optimizer.param_groups)
        assert base == schedule.at(iteration) != 0.05
        assert predictor == (0.05 if fixed else base)


def test_groups_hold_each_trained_parameter_once_and_decay_all() -> None:
    method = _method()
    groups = param_groups(method, True)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in method.parameters() if p.requires_grad)
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in method.predictor.parameters()}
    assert id(method.projector[6].bias) not in held
    optimizer = build_sgd(method, defaults())
    assert {group["weight_decay"] for group in optimizer.param_groups} == {1e-4}
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}


def test_a_method_without_predictor_has_one_group() -> None:
    method = _method()
    method.predictor = None
    assert [group["name"] for group in param_groups(method, True)] == ["base"]
