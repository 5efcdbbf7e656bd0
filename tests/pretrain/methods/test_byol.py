"""BYOL against its released code and solo-learn, step by step, in float64; and what would go unnoticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pretrain.config import check_config, defaults
from pretrain.methods import build_method, byol
from pretrain.methods.byol import BYOL, regression_loss
from pretrain.optim.schedule import cosine_momentum
from ssl_transfer.errors import UserError
from tests.pretrain.golden import narrow
from tests.pretrain.golden.ours_momentum import ends, narrow_byol, trained

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "byol.json").read_text())
RUN = GOLDEN["run"]


def test_losses_gradients_and_both_networks_equal_the_original() -> None:
    method = narrow_byol()
    record = trained(method)
    assert record.losses == pytest.approx(RUN["losses"], rel=1e-9)
    for key, value in RUN["gradients"].items():
        assert record.gradients[key] == pytest.approx(value, rel=1e-7, abs=1e-9), key
    assert record.gradients.keys() == RUN["gradients"].keys()
    for network, tensors in ends(method).items():
        assert tensors == {key: pytest.approx(value, rel=1e-8, abs=1e-8) for key, value in RUN[network].items()}


@pytest.mark.parametrize("source", GOLDEN["loss"])
def test_loss_and_gradient_equal_the_original(source: str) -> None:
    golden = GOLDEN["loss"][source]
    p, z = (narrow.normal(kind, (5, narrow.DIM)) for kind in ("prediction", "target"))
    loss = regression_loss(p.requires_grad_(), z)
    loss.backward()
    assert loss.item() == pytest.approx(golden["value"], rel=1e-12)
    assert p.grad is not None
    assert p.grad.flatten().tolist() == pytest.approx(golden["gradient"], rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("name", GOLDEN["momentum"])
def test_target_momentum_equals_the_original(name: str) -> None:
    base, total = float(name.split()[0]), int(name.split()[1])
    steps = [0, 1, total // 3, total // 2, total - 1, total]
    ours = [cosine_momentum(base, step, total) for step in steps]
    assert ours == pytest.approx(GOLDEN["momentum"][name], rel=1e-12)
    assert [1 - m for m in ours[:-1]] == pytest.approx([1 - m for m in GOLDEN["momentum"][name][:-1]], rel=1e-4)


def _momentum_one_per_cent_off(_monkeypatch: pytest.MonkeyPatch) -> BYOL:
    return narrow_byol(momentum=0.8 * 1.01)


def _constant_momentum(monkeypatch: pytest.MonkeyPatch) -> BYOL:
    monkeypatch.setattr(byol, "cosine_momentum", lambda base, iteration, total: base)
    return narrow_byol()


def _target_before_the_optimiser(monkeypatch: pytest.MonkeyPatch) -> BYOL:
    monkeypatch.setattr(BYOL, "after_backward", BYOL.after_step)
    monkeypatch.setattr(BYOL, "after_step", lambda *_: None)
    return narrow_byol()


def _gradient_to_the_target(monkeypatch: pytest.MonkeyPatch) -> BYOL:
    """No target network and no stop-gradient: the online network's own outputs, with their gradient."""
    method = narrow_byol()
    del method.target_encoder, method.target_projector
    method.target_encoder, method.target_projector = method.encoder, method.projector
    monkeypatch.setattr(byol, "update_ema", lambda *_: None)
    monkeypatch.setattr(torch, "no_grad", torch.enable_grad)
    return method


def _half_the_loss(monkeypatch: pytest.MonkeyPatch) -> BYOL:
    monkeypatch.setattr(byol, "regression_loss", lambda p, z: regression_loss(p, z) / 2)
    return narrow_byol()


@pytest.mark.parametrize(
    "mutate",
    [
        _momentum_one_per_cent_off,
        _constant_momentum,
        _target_before_the_optimiser,
        _gradient_to_the_target,
        _half_the_loss,
    ],
)
def test_a_change_is_detected_by_the_losses(
    monkeypatch: pytest.MonkeyPatch, mutate: Callable[[pytest.MonkeyPatch], BYOL]
) -> None:
    assert trained(mutate(monkeypatch)).losses != pytest.approx(RUN["losses"], rel=1e-5)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_loss_and_gradients_are_finite_and_float32_in_half_precision(half: torch.dtype) -> None:
    method = narrow_byol().float()
    with torch.autocast("cpu", half):
        output = method(*(view.float() for view in narrow.images(0)))
    output.loss.backward()
    assert output.loss.dtype == torch.float32 and output.embedding.dtype == half
    assert output.loss.item() == pytest.approx(RUN["losses"][0], rel=0.02)
    grads = [p.grad for p in method.parameters() if p.requires_grad]
    assert all(grad is not None and torch.isfinite(grad).all() for grad in grads)


def _config(**keys: object) -> object:
    cfg = defaults()
    cfg.METHOD = "byol"
    cfg.MODEL.update(ARCH="resnet18", PROJ_LAYERS=2, PROJ_HIDDEN=24, DIM=8, PRED_DIM=20, HEAD_BN="hidden")
    for key, value in keys.items():
        section, name = key.split("__")
        cfg[section][name] = value
    return cfg


@pytest.mark.parametrize("start", byol.STARTS)
def test_target_start_is_random_or_a_copy(start: str) -> None:
    cfg = _config(BYOL__TARGET_START=start)
    check_config(cfg)
    torch.manual_seed(0)
    method = build_method(cfg)
    assert isinstance(method, BYOL)
    same = [
        torch.equal(mine, other)
        for mine, other in zip(method.target_encoder.parameters(), method.encoder.parameters(), strict=True)
        if mine.dim() > 1
    ]
    assert all(same) if start == "online" else not any(same)
    assert not [name for name, p in method.named_parameters() if p.requires_grad == name.startswith("target_")]
    assert [tuple(p.shape) for p in method.predictor.parameters()] == [(20, 8), (20,), (20,), (8, 20)], "no biases"


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"BYOL__TARGET_MOMENTUM": 1.5}, ["BYOL.TARGET_MOMENTUM is 1.5", "0 … 1"]),
        ({"BYOL__TARGET_START": "onlin"}, ["BYOL.TARGET_START", "online"]),
        ({"MODEL__PREDICTOR": "none"}, ["MODEL.PREDICTOR", "mlp"]),
    ],
)
def test_invalid_value_is_refused_in_one_line_with_its_key(keys: dict[str, object], named: list[str]) -> None:
    with pytest.raises(UserError) as error:
        check_config(_config(**keys))
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in named)
