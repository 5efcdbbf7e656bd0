"""LARS and LARC against their originals in float64 (golden/lars.json); and what the comparison notices."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pretrain.config import defaults
from pretrain.methods import build_method
from pretrain.optim.optimizer import build_larc, build_lars, build_optimizer, set_lr
from pretrain.optim.schedule import CosineByStep, build_schedule
from tests.pretrain.golden import narrow_lars as narrow

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "lars.json").read_text())
Rates = Callable[[int], float]
Arrays = dict[str, np.ndarray]
BUILDERS = {"lars": build_lars, "larc": build_larc}
ORIGINAL = {"lars": "byol", "larc": "larc"}
"""Whose values they are."""


def constant(_step: int) -> float:
    return narrow.LR


def parameters() -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.from_numpy(value)) for name, value in narrow.weights().items()}


def optimizer_of(name: str, params: dict[str, nn.Parameter], **changes: Any) -> torch.optim.Optimizer:
    words = {"momentum": narrow.MOMENTUM, "decay": narrow.DECAY, "eta": narrow.TRUST, "foreach": False, **changes}
    return BUILDERS[name]([{"name": "base", "params": list(params.values())}], narrow.LR, **words)


def steps(optimizer: Any, params: dict[str, nn.Parameter], rates: Rates, first: int = 0) -> None:
    for step in range(first, narrow.STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rates(step)
        for name, gradient in narrow.gradients(step).items():
            params[name].grad = torch.from_numpy(gradient)
        optimizer.step()


def trained(name: str, rates: Rates, **changes: Any) -> Arrays:
    """Our weights after all steps; `changes` are arguments that differ."""
    params = parameters()
    steps(optimizer_of(name, params, **changes), params, rates)
    return {key: p.detach().numpy() for key, p in params.items()}


def golden(whose: str) -> Arrays:
    return {name: np.array(values).reshape(narrow.SHAPES[name]) for name, values in GOLDEN[whose].items()}


def gap(ours: Arrays, theirs: Arrays) -> float:
    assert ours.keys() == theirs.keys()
    return max(float(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max()) for name in theirs)


@pytest.mark.parametrize("foreach", [False, True, None])
@pytest.mark.parametrize("name", ["lars", "larc"])
def test_every_step_equals_the_original(name: str, foreach: bool | None) -> None:
    assert gap(trained(name, narrow.falling, foreach=foreach), golden(ORIGINAL[name])) < 1e-13


def test_simclrs_momentum_is_equal_at_a_constant_rate() -> None:
    """Its rate enters the buffer."""
    assert gap(trained("lars", constant), golden("simclr")) < 1e-13
    assert gap(trained("lars", narrow.falling), golden("simclr")) > 1e-3


@pytest.mark.parametrize("name", ["lars", "larc"])
@pytest.mark.parametrize("change", [{"eta": 0.00101}, {"decay": 0.0505}, {"momentum": 0.909}, {"decay": 0.0}], ids=str)
def test_a_changed_argument_is_detected(name: str, change: dict[str, float]) -> None:
    assert gap(trained(name, narrow.falling, **change), golden(ORIGINAL[name])) > 1e-6


def _timms(spare_vectors: bool) -> Arrays:
    """timm's own LARS, with its own ratio; biases and batch normalisation spared or not."""
    from timm.optim.lars import Lars

    params = parameters()
    vectors = [p for p in params.values() if p.ndim == 1]
    groups = [{"params": [p for p in params.values() if p.ndim > 1]}, {"params": vectors}]
    if spare_vectors:
        groups[1]["weight_decay"] = 0.0  # type: ignore[assignment]
    optimizer = Lars(groups, narrow.LR, momentum=narrow.MOMENTUM, weight_decay=narrow.DECAY, trust_coeff=narrow.TRUST)
    steps(optimizer, params, narrow.falling)
    return {key: p.detach().numpy() for key, p in params.items()}


def test_lars_larc_and_timms_lars_differ() -> None:
    assert gap(trained("larc", narrow.falling), golden("byol")) > 1e-3
    assert gap(trained("lars", narrow.falling), golden("larc")) > 1e-3
    assert gap(_timms(spare_vectors=True), golden("byol")) > 1e-5  # ‖g‖ + decay·‖w‖ is not ‖g + decay·w‖
    assert gap(_timms(spare_vectors=False), golden("byol")) > 1e-3


def test_schedule_equals_byol() -> None:
    cfg = defaults()
    cfg.SOLVER.update(SCHEDULE="cosine_by_step", WARMUP_ENDS="first", WARMUP_EPOCHS=narrow.WARMUP, EPOCHS=narrow.EPOCHS)
    cfg.SOLVER.update(BASE_LR=narrow.BASE_LR, BATCH_SIZE=narrow.BATCH)
    schedule = build_schedule(cfg, narrow.IMAGES // narrow.BATCH)
    rates = [schedule.at(step) for step in range(len(GOLDEN["schedule"]))]
    assert rates == pytest.approx(GOLDEN["schedule"], rel=1e-12, abs=1e-15) and len(rates) == 70
    cfg.SOLVER.WARMUP_ENDS = "last"
    assert build_schedule(cfg, 7).at(3) != pytest.approx(GOLDEN["schedule"][3], rel=1e-2)


def _method(predictor: bool = True) -> Any:
    cfg = defaults()
    cfg.MODEL.update(PROJ_HIDDEN=8, DIM=8, PRED_DIM=4, HEAD_BN="default" if predictor else "none")
    with torch.device("meta"):
        return build_method(cfg)


@pytest.mark.parametrize("predictor", [True, False])
def test_lars_skips_batch_norm_and_biases(predictor: bool) -> None:
    method, cfg = _method(predictor), defaults()
    cfg.SOLVER.update(OPTIMIZER="lars", WEIGHT_DECAY=1e-6, BASE_LR=0.3, BATCH_SIZE=4096)
    groups = build_optimizer(method, cfg).param_groups
    spared = {id(p) for group in groups if not group["always_adapt"] for p in group["params"]}
    held = {id(p) for group in groups for p in group["params"]}
    norms = {id(p) for module in method.modules() if isinstance(module, _BatchNorm) for p in module.parameters()}
    biases = {id(p) for name, p in method.named_parameters() if name.endswith("bias")}
    trained_ones = {id(p) for p in method.parameters() if p.requires_grad}
    assert held == trained_ones and spared == (norms | biases) & trained_ones and spared < held
    assert {group["added_decay"] for group in groups if group["always_adapt"]} == {1e-6}
    assert {group["added_decay"] for group in groups if not group["always_adapt"]} == {0.0}
    assert {(group["trust_coeff"], group["trust_clip"], group["weight_decay"]) for group in groups} == {
        (1e-3, False, 0)
    }
    assert {group["lr"] for group in groups} == {4.8}


def test_larc_scales_every_tensor_even_without_decay() -> None:
    cfg = defaults()
    cfg.SOLVER.update(OPTIMIZER="larc", WEIGHT_DECAY=0.0)
    groups = build_optimizer(_method(), cfg).param_groups
    assert {(group["always_adapt"], group["weight_decay"], group["eps"]) for group in groups} == {(True, 0.0, 1e-8)}


def test_both_halves_of_a_group_get_the_scheduled_rate() -> None:
    cfg = defaults()
    cfg.SOLVER.OPTIMIZER = "lars"
    schedule = CosineByStep(0.05, epochs=2, steps_per_epoch=5)
    for fixed in (True, False):
        cfg.SOLVER.FIX_PRED_LR = fixed
        optimizer = build_optimizer(_method(), cfg)
        set_lr(optimizer, schedule, 5)
        rates = [(group["name"], group["lr"]) for group in optimizer.param_groups]
        assert rates == [("base", 0.025)] * 2 + [("predictor", 0.05 if fixed else 0.025)] * 2


@pytest.mark.parametrize("name", ["lars", "larc"])
def test_tensor_without_gradient_is_not_changed(name: str) -> None:
    """As SwAV's prototypes in their first iterations."""
    params, before = parameters(), narrow.weights()
    optimizer = optimizer_of(name, params)
    for key, p in params.items():
        p.grad = None if key == "fc.weight" else torch.ones_like(p)
    optimizer.step()
    assert [key for key, p in params.items() if np.array_equal(p.detach().numpy(), before[key])] == ["fc.weight"]


@pytest.mark.parametrize("name", ["lars", "larc"])
def test_loaded_state_continues_exactly(name: str) -> None:
    half = parameters()
    optimizer, stop = optimizer_of(name, half), 3

    def until(step: int) -> float:
        if step == stop:
            raise StopIteration
        return narrow.falling(step)

    with pytest.raises(StopIteration):
        steps(optimizer, half, until)
    stored = io.BytesIO()
    torch.save([{key: p.detach() for key, p in half.items()}, optimizer.state_dict()], stored)
    stored.seek(0)
    weights, state = torch.load(stored, weights_only=True)
    rest = {key: nn.Parameter(tensor) for key, tensor in weights.items()}
    resumed = optimizer_of(name, rest)
    resumed.load_state_dict(state)
    steps(resumed, rest, narrow.falling, first=stop)
    whole = trained(name, narrow.falling)
    assert all(np.array_equal(rest[key].detach().numpy(), whole[key]) for key in whole)
    fresh = {key: nn.Parameter(p.detach().clone()) for key, p in half.items()}
    steps(optimizer_of(name, fresh), fresh, narrow.falling, first=stop)
    assert not np.array_equal(fresh["conv.weight"].detach().numpy(), whole["conv.weight"])  # the buffers matter
