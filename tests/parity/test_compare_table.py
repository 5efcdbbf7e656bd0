"""What the comparisons with the originals judge: weights, buffers and momenta besides losses."""

from __future__ import annotations

import math
from typing import Any

import torch

from pretrain.data.dataset import Batch
from pretrain.engine.trainer import Trainer
from pretrain.optim.optimizer import build_sgd
from tests.parity.compare_simsiam import End, compare
from tests.parity.compare_table import close, compare_steps, momenta_of, set_bn_momentum
from tests.pretrain.golden import narrow
from tests.pretrain.golden.ours import narrow_simsiam
from tests.pretrain.methods.test_simsiam import _config, _Record


def _trained(bn_momentum: float | None = None, **solver: Any) -> End:
    """Two steps of the narrow SimSiam."""
    cfg, method = _config(True), narrow_simsiam()
    cfg.SOLVER.update(solver)
    set_bn_momentum(method, bn_momentum)
    batches = iter([Batch(narrow.images(step), torch.arange(narrow.BATCH)) for step in range(2)])
    trainer, record = Trainer(method, build_sgd(method, cfg), batches), _Record()
    trainer.register_hooks([record])
    trainer.train(0, 2)
    return End(record.losses, dict(method.state_dict()), momenta_of(method, trainer.optimizer))


def test_bn_momentum_shows_in_the_buffers_only() -> None:
    theirs = _trained()
    assert all(check.ok and check.difference == 0 for check in compare(_trained(), theirs))
    losses, state, momenta = compare(_trained(bn_momentum=0.11), theirs)
    assert losses.ok and momenta.ok and not state.ok and state.difference > 0.01 and "running" in state.found


def test_sgd_momentum_shows_in_the_momenta() -> None:
    theirs = _trained()
    assert theirs.momenta.keys() == {name for name in theirs.state if name.endswith(("weight", "bias"))} - {
        "projector.6.bias"  # frozen
    }
    assert not compare(_trained(MOMENTUM=0.909), theirs)[2].ok


def test_nan_and_other_names_differ() -> None:
    nan, one = {"a": torch.tensor([math.nan]), "b": torch.ones(1)}, {"a": torch.ones(1), "b": torch.ones(1)}
    for ours, theirs in ((nan, one), (one, nan), (nan, nan), (one, {"a": torch.ones(1)})):
        check = close("state", ours, theirs, 1.0)
        assert not check.ok and check.difference == math.inf
    row = {"lr": 0.1, "total_loss": 1.0}
    assert compare_steps([row], [row])[1].ok
    assert not compare_steps([{**row, "total_loss": math.nan}], [row])[1].ok
