"""SimSiam with a momentum encoder: with none it is SimSiam to the bit, with one it is what a slow loop computes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pretrain.config import check_config, defaults
from pretrain.data.dataset import Batch
from pretrain.engine.trainer import Trainer
from pretrain.methods import build_method, simsiam
from pretrain.methods.base import TrainingInfo
from pretrain.methods.simsiam import PAIRS, SimSiam
from pretrain.optim.schedule import cosine_momentum
from ssl_transfer.errors import UserError
from tests.pretrain.golden import narrow, narrow_momentum
from tests.pretrain.golden.ours import narrow_method, narrow_simsiam

TOTAL = 6


def _batches(first: int) -> Iterator[Batch]:
    return iter([Batch(narrow.images(step), torch.arange(narrow.BATCH)) for step in range(first, TOTAL)])


def _train(method: SimSiam) -> list[float]:
    method.prepare(TrainingInfo(narrow.BATCH, TOTAL, TOTAL, _batches))
    optimizer = narrow_momentum.sgd([p for p in method.parameters() if p.requires_grad])
    trainer, losses = Trainer(method, optimizer, _batches(0)), []
    step = trainer.run_step

    def run_step() -> None:
        step()
        losses.append(trainer.latest["loss"])

    trainer.run_step = run_step  # type: ignore[method-assign]
    trainer.train(0, TOTAL)
    return losses


def _with_momentum(momentum: float, **more: Any) -> SimSiam:
    """`narrow_method` fills every network by its name: the second f starts as a copy of the first."""
    method = narrow_method(SimSiam, target_momentum=momentum, **more)
    method.target_encoder.load_state_dict(method.encoder.state_dict())
    method.target_projector.load_state_dict(method.projector.state_dict())
    return method


def _online(method: SimSiam) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in method.state_dict().items() if not name.startswith("target_")}


def test_target_momentum_zero_equals_simsiam_bit_for_bit() -> None:
    plain, none = narrow_simsiam(), narrow_method(SimSiam, target_momentum=0.0)
    assert plain.state_dict().keys() == none.state_dict().keys() and not hasattr(none, "target_encoder")
    assert _train(plain) == _train(none)
    assert all(torch.equal(mine, other) for mine, other in zip(plain.parameters(), none.parameters(), strict=True))


def test_target_network_without_inertia_equals_simsiam_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """θ' = θ after every step: what is left of the momentum encoder is that it is computed a second time."""
    monkeypatch.setattr(simsiam, "cosine_momentum", lambda *_: 0.0)
    plain, second = narrow_simsiam(), _with_momentum(0.5)
    assert _train(second) == _train(plain)
    ours, theirs = _online(second), plain.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("symmetry", ["symmetric", "asymmetric"])
def test_run_equals_a_plain_loop(symmetry: str) -> None:
    pairs, method = PAIRS[symmetry], narrow_simsiam().train()
    target = copy.deepcopy(torch.nn.ModuleList([method.encoder, method.projector]))
    optimizer = narrow_momentum.sgd([p for p in method.parameters() if p.requires_grad])
    expected = []
    for step in range(TOTAL):
        views = narrow.images(step)
        z = [method.projector(method.encoder(view)) for view in views]
        assert method.predictor is not None
        with torch.no_grad():
            goals = {j: target[1](target[0](views[j])) for _, j in pairs}
        terms = [-F.cosine_similarity(method.predictor(z[i]), goals[j]).mean() for i, j in pairs]
        loss = torch.stack(terms).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        m = cosine_momentum(0.7, step, TOTAL)
        with torch.no_grad():
            online = torch.nn.ModuleList([method.encoder, method.projector])
            for old, new in zip(target.parameters(), online.parameters(), strict=True):
                old.copy_(m * old + (1 - m) * new)
        expected.append(loss.item())
    ours = _with_momentum(0.7, pairs=pairs)
    assert _train(ours) == pytest.approx(expected, rel=1e-10)
    for mine, other in zip(ours.target_encoder.parameters(), target[0].parameters(), strict=True):
        torch.testing.assert_close(mine.detach(), other.detach(), rtol=1e-9, atol=1e-12)
    assert _train(_with_momentum(0.707, pairs=pairs)) != pytest.approx(expected, rel=1e-6)


def _config(**keys: Any) -> Any:
    cfg = defaults()
    cfg.MODEL.update(ARCH="resnet18", PROJ_HIDDEN=16, DIM=16, PRED_DIM=8)
    cfg.SIMSIAM.update(**keys)
    return cfg


def test_target_network_starts_as_an_untrained_copy() -> None:
    cfg = _config(TARGET_MOMENTUM=0.996)
    check_config(cfg)
    method = build_method(cfg)
    assert isinstance(method, SimSiam)
    for mine, other in zip(method.target_encoder.parameters(), method.encoder.parameters(), strict=True):
        assert torch.equal(mine, other) and mine is not other and not mine.requires_grad
    assert not hasattr(build_method(_config()), "target_encoder")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"TARGET_MOMENTUM": 1.2}, "SIMSIAM.TARGET_MOMENTUM is 1.2"),
        ({"TARGET_MOMENTUM": 0.9, "STOP_GRADIENT": False}, "SIMSIAM.STOP_GRADIENT is False"),
    ],
)
def test_invalid_value_is_refused_in_one_line_with_its_key(words: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named) as error:
        check_config(_config(**words))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["alternation", "moving_average"])
def test_other_methods_refuse_the_key(method: str) -> None:
    cfg = _config(TARGET_MOMENTUM=0.9)
    cfg.METHOD = method
    with pytest.raises(UserError, match=r"SIMSIAM.TARGET_MOMENTUM is 0.9; with METHOD"):
        check_config(cfg)
