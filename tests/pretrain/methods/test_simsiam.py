"""SimSiam against the original code, step by step, in float64; and that the comparison notices what matters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.engine.train_loop import HookBase
from torch import nn

from pretrain.config import defaults
from pretrain.data.dataset import Batch
from pretrain.engine.step_hooks import LearningRates
from pretrain.engine.trainer import Trainer
from pretrain.methods import simsiam
from pretrain.optim.optimizer import build_sgd
from pretrain.optim.schedule import build_schedule
from tests.pretrain.golden import narrow
from tests.pretrain.golden.ours import narrow_simsiam

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
RUNS = json.loads((GOLDEN / "simsiam.json").read_text())["runs"]


class _Record(HookBase):
    trainer: Trainer

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[list[float]] = []

    def after_step(self) -> None:
        self.losses.append(self.trainer.latest["loss"])
        self.rates.append([group["lr"] for group in self.trainer.optimizer.param_groups])


def _config(fix_predictor_lr: bool) -> Any:
    cfg = defaults()
    cfg.SOLVER.update(
        BATCH_SIZE=narrow.BATCH,
        BASE_LR=narrow.BASE_LR,
        WEIGHT_DECAY=narrow.WEIGHT_DECAY,
        EPOCHS=narrow.EPOCHS,
        FIX_PRED_LR=fix_predictor_lr,
    )
    return cfg


def _train(method: simsiam.SimSiam, cfg: Any) -> _Record:
    total = narrow.STEPS_PER_EPOCH * narrow.EPOCHS
    batches = iter([Batch(narrow.images(step), torch.arange(narrow.BATCH)) for step in range(total)])
    trainer, record = Trainer(method, build_sgd(method, cfg), batches), _Record()
    trainer.register_hooks([LearningRates(build_schedule(cfg, narrow.STEPS_PER_EPOCH)), record])
    trainer.train(0, total)
    return record


def _relative(ours: list[float], theirs: list[float]) -> float:
    return max(abs(a - b) / max(abs(b), 1e-3) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", RUNS)
def test_losses_rates_and_weights_equal_the_original(name: str) -> None:
    golden, method = RUNS[name], narrow_simsiam()
    assert narrow.checksums(method) == {key: pytest.approx(value, rel=1e-12) for key, value in golden["start"].items()}
    record = _train(method, _config(name == "fixed predictor lr"))
    assert _relative(record.losses, golden["losses"]) < 1e-9
    for step, rates in enumerate(record.rates):
        theirs = golden["rates"][step // narrow.STEPS_PER_EPOCH]
        assert rates == pytest.approx([theirs[0], theirs[-1]], rel=1e-15)
    ends = narrow.checksums(method)
    assert ends.keys() == golden["end"].keys()
    for key, value in golden["end"].items():
        assert ends[key] == pytest.approx(value, rel=1e-9, abs=1e-9), key


def _no_stop_gradient(monkeypatch: pytest.MonkeyPatch, _cfg: Any) -> None:
    monkeypatch.setattr(simsiam.SimSiam, "targets", lambda self, z: [z[j] for _, j in self.pairs])


def _rate_one_per_cent_off(_monkeypatch: pytest.MonkeyPatch, cfg: Any) -> None:
    cfg.SOLVER.BASE_LR *= 1.01


def _no_decay(_monkeypatch: pytest.MonkeyPatch, cfg: Any) -> None:
    cfg.SOLVER.WEIGHT_DECAY = 0.0


def _decayed_predictor(_monkeypatch: pytest.MonkeyPatch, cfg: Any) -> None:
    cfg.SOLVER.FIX_PRED_LR = False


@pytest.mark.parametrize("mutate", [_no_stop_gradient, _rate_one_per_cent_off, _no_decay, _decayed_predictor])
def test_a_change_is_detected_by_the_comparison(monkeypatch: pytest.MonkeyPatch, mutate: Callable[..., None]) -> None:
    cfg = _config(True)
    mutate(monkeypatch, cfg)
    assert _relative(_train(narrow_simsiam(), cfg).losses, RUNS["fixed predictor lr"]["losses"]) > 1e-6


def test_loss_of_equal_views_through_an_identity_is_minus_one() -> None:
    class Flat(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)

    method = simsiam.SimSiam(Flat(), nn.Identity(), nn.Identity(), 12)  # type: ignore[arg-type]
    x = torch.randn(5, 3, 2, 2)
    output = method(x, x)
    assert output.loss.item() == pytest.approx(-1) and output.embedding.shape == (5, 12)
    assert not output.embedding.requires_grad
