"""Precise BN: the population's mean and variance, and fvcore's where it is asked for."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from fvcore.nn.precise_bn import update_bn_stats
from torch import Tensor, nn

from transfer.engine.precise_bn import Moments, PreciseBN, population, update_synchronised


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)
    ).train()


def batches(count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn((1 + i % 3, 3, 8 + i, 10), generator=generator) * 3 + 1 for i in range(count)]


def test_statistics_are_those_of_all_inputs(model: nn.Sequential) -> None:
    update_synchronised(model, batches())
    with torch.no_grad():
        entered = torch.cat([model[0](batch).transpose(0, 1).flatten(1) for batch in batches()], dim=1)
    torch.testing.assert_close(model[1].running_mean, entered.mean(dim=1))
    torch.testing.assert_close(model[1].running_var, entered.var(dim=1, correction=0))


def test_a_single_process_equals_fvcore(model: nn.Sequential) -> None:
    """On one rank fvcore's definition is the same; its arithmetic, in float32, is a little less exact."""
    theirs = copy.deepcopy(model)
    update_synchronised(model, batches())
    update_bn_stats(theirs, batches(), 4)
    for name, value in theirs.named_buffers():
        if "running" in name:
            torch.testing.assert_close(dict(model.named_buffers())[name], value, rtol=1e-4, atol=1e-5)


def test_weights_momentum_and_hooks_are_unchanged(model: nn.Sequential) -> None:
    before = {name: value.clone() for name, value in model.named_parameters()}
    update_synchronised(model, batches())
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert all(layer.momentum == 0.1 and not layer._forward_pre_hooks for layer in (model[1], model[4]))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_layer_without_input_keeps_its_statistics(model: nn.Sequential) -> None:
    model.add_module("unused", nn.Identity())
    model[5].add_module("norm", nn.BatchNorm2d(2))
    model[5].norm.running_mean.fill_(5)
    update_synchronised(model, batches())
    assert model[5].norm.running_mean.tolist() == [5, 5]


def test_layers_in_eval_mode_are_unchanged(model: nn.Sequential) -> None:
    model[1].eval()
    update_synchronised(model, batches())
    assert model[1].running_mean.abs().sum() == 0 and model[4].running_mean.abs().sum() > 0


def test_moments_of_nothing_and_of_large_means() -> None:
    moments = Moments(2, torch.device("cpu"))
    moments.add(torch.empty((0, 2, 3, 3)))
    assert population(moments.packed()) is None
    values = torch.randn((8, 2, 32, 32), generator=torch.Generator().manual_seed(0)) + 1000
    moments.add(values[:3])
    moments.add(values[3:])
    found = population(moments.packed())
    assert found is not None
    exact = values.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(found[0], exact.mean(dim=1), rtol=1e-6, atol=0)
    torch.testing.assert_close(found[1], exact.var(dim=1, correction=0), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("period", "expected"),
    [(0, {9: (0, 5)}), (3, {2: (0, 5), 5: (5, 10), 8: (10, 15), 9: (15, 20)}), (5, {4: (0, 5), 9: (5, 10)})],
)
def test_it_runs_before_each_evaluation_and_at_the_end(
    model: nn.Sequential, monkeypatch: pytest.MonkeyPatch, period: int, expected: dict[int, tuple[int, int]]
) -> None:
    asked: dict[int, tuple[int, int]] = {}
    trainer = SimpleNamespace(iter=0, max_iter=10)

    def source(start: int, stop: int) -> Iterator[Tensor]:
        asked[trainer.iter] = (start, stop)
        yield from batches()

    hook = PreciseBN("synchronised", period=period, model=model, batches=source, count=5)
    hook.trainer = trainer
    for trainer.iter in range(10):
        hook.after_step()
    assert asked == expected


def test_fvcore_is_an_option(model: nn.Sequential, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    monkeypatch.setattr(
        "transfer.engine.precise_bn.update_bn_stats", lambda _model, _batches, count: called.append(count)
    )
    hook = PreciseBN("fvcore", period=0, model=model, batches=lambda start, stop: batches(), count=4)
    hook.update(0)
    assert called == [4]
