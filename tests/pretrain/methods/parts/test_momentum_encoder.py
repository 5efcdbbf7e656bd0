"""A network that follows another: parameters by the definition, statistics its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pretrain.methods.parts.momentum import momentum_copy, update_ema


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()


@pytest.mark.parametrize("m", [0.0, 0.3, 0.999, 1.0])
def test_update_ema_equals_the_definition(m: float) -> None:
    online = _network()
    target = momentum_copy(online)
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), online.parameters(), strict=True))
    expected = [p.detach().clone() for p in target.parameters()]
    for _ in range(3):
        with torch.no_grad():
            for parameter in online.parameters():
                parameter.add_(torch.randn_like(parameter))
        update_ema(target, online, m)
        expected = [m * old + (1 - m) * new for old, new in zip(expected, online.parameters(), strict=True)]
    for ours, theirs in zip(target.parameters(), expected, strict=True):
        torch.testing.assert_close(ours, nn.Parameter(theirs.detach(), requires_grad=False), rtol=1e-14, atol=1e-15)


def test_momentum_copy_has_no_gradient_and_its_own_statistics() -> None:
    online = _network()
    target = momentum_copy(online)
    assert not any(p.requires_grad for p in target.parameters()) and all(p.requires_grad for p in online.parameters())
    online(torch.randn(5, 3).double())
    before = {name: buffer.clone() for name, buffer in target.named_buffers()}
    update_ema(target, online, 0.5)
    assert all(torch.equal(before[name], buffer) for name, buffer in target.named_buffers())
    target(torch.randn(5, 3).double())
    assert not torch.equal(before["1.running_mean"], dict(target.named_buffers())["1.running_mean"])


def test_momentum_copy_has_its_own_parameters() -> None:
    online = _network()
    target = momentum_copy(online)
    update_ema(target, _network(), 0.0)
    with torch.no_grad():
        next(target.parameters()).zero_()
    assert not torch.equal(next(target.parameters()), next(online.parameters()))
