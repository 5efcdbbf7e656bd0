"""Alternation: one step is SimSiam to the last bit; k steps are what a slow loop written here computes."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from pretrain.config import defaults
from pretrain.data.dataset import Batch
from pretrain.engine.trainer import Trainer
from pretrain.methods import alternation
from pretrain.methods.alternation import Alternation
from pretrain.methods.base import TrainingInfo
from pretrain.methods.simsiam import PAIRS, SimSiam
from pretrain.optim.optimizer import build_sgd
from tests.pretrain.golden import narrow
from tests.pretrain.golden.ours import narrow_method, narrow_simsiam

TOTAL, STEPS_PER_EPOCH = 8, 4
VIEWS = [narrow.images(step) for step in range(TOTAL)]
requested: list[int] = []
"""Iterations from which a method requested later batches."""


def _batches(first: int) -> Iterator[Batch]:
    requested.append(first)
    return iter([Batch(views, torch.arange(narrow.BATCH)) for views in VIEWS[first:]])


def _train(method: SimSiam, start: int = 0, stop: int = TOTAL) -> list[float]:
    cfg = defaults()
    cfg.SOLVER.BASE_LR = narrow.BASE_LR * narrow.BATCH / 256
    method.prepare(TrainingInfo(narrow.BATCH, STEPS_PER_EPOCH, TOTAL, _batches))
    trainer, losses = Trainer(method, build_sgd(method, cfg), _batches(start)), []
    step = trainer.run_step

    def run_step() -> None:
        step()
        losses.append(trainer.latest["loss"])

    trainer.run_step = run_step  # type: ignore[method-assign]
    trainer.train(start, stop)
    return losses


def _online(method: SimSiam) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in method.state_dict().items() if not name.startswith("frozen.")}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_step_per_period_equals_simsiam_bit_for_bit(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU the same sums are made in the same order, with and without autograd: nothing is left to round."""
    monkeypatch.setitem(globals(), "VIEWS", [tuple(view.to(dtype) for view in views) for views in VIEWS])
    simsiam, turns = narrow_simsiam().to(dtype), narrow_method(Alternation, 1).to(dtype)
    assert _train(turns) == _train(simsiam)
    ours, theirs = _online(turns), simsiam.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert int(ours["encoder.bn1.num_batches_tracked"]) == 2 * TOTAL, "running statistics see each view once"


def _slow(steps: int, symmetry: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The paper's two sub-problems one after the other, on a plain SimSiam and plain SGD."""
    method = narrow_simsiam().train()
    optimizer = torch.optim.SGD(
        [p for p in method.parameters() if p.requires_grad],
        lr=narrow.BASE_LR * narrow.BATCH / 256,
        momentum=0.9,
        weight_decay=1e-4,
    )
    losses = []
    for begin in range(0, TOTAL, steps):
        period = range(begin, min(begin + steps, TOTAL))
        eta = {}
        for t in period:
            frozen = copy.deepcopy(method)
            with torch.no_grad():
                eta[t] = [frozen.projector(frozen.encoder(view)) for view in VIEWS[t]]
        for t in period:
            z = [method.projector(method.encoder(view)) for view in VIEWS[t]]
            assert method.predictor is not None
            first = -F.cosine_similarity(method.predictor(z[0]), eta[t][1]).mean()
            if symmetry == "symmetric":
                loss = (first - F.cosine_similarity(method.predictor(z[1]), eta[t][0]).mean()) / 2
            else:
                loss = first
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses, method.state_dict()


@pytest.mark.parametrize(
    ("steps", "symmetry"), [(3, "symmetric"), (0, "symmetric"), (2, "asymmetric"), (100, "symmetric")]
)
def test_k_steps_per_period_equal_a_plain_loop(steps: int, symmetry: str) -> None:
    method = narrow_method(Alternation, steps, pairs=PAIRS[symmetry])
    losses = _train(method)
    expected, weights = _slow(steps or STEPS_PER_EPOCH, symmetry)
    assert losses == pytest.approx(expected, rel=1e-12)
    for name, tensor in _online(method).items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-11, atol=1e-13)
    assert losses != pytest.approx(_train(narrow_method(SimSiam, pairs=PAIRS[symmetry])), rel=1e-6)


def test_state_dict_suffices_to_resume() -> None:
    whole = narrow_method(Alternation, 3)
    losses = _train(whole, 0, 5)
    resumed = narrow_method(Alternation, 3)
    resumed.load_state_dict(whole.state_dict())
    plain = narrow_method(Alternation, 3)
    plain.load_state_dict(whole.state_dict())
    with torch.no_grad():
        next(plain.frozen.parameters()).mul_(1.5)
    requested.clear()
    # Fresh momentum on both sides, so that only the method's own state is compared.
    after = _train(resumed, 5, 6)
    assert requested == [5, 5], "it reads from where it was stopped, not from the period's start"
    assert after != _train(plain, 5, 6), "the frozen network is what the targets come from"
    assert len(losses) == 5 and not any(p.requires_grad for p in resumed.frozen.parameters())


def test_frozen_network_is_not_trained_nor_exported_and_has_no_statistics() -> None:
    method = narrow_method(Alternation, 3)
    groups = build_sgd(method, defaults()).param_groups
    trained = {id(p) for group in groups for p in group["params"]}
    assert not trained & {id(p) for p in method.frozen.parameters()}
    assert not [name for name, _ in method.frozen.named_buffers()]
    before = copy.deepcopy(method.frozen.state_dict())
    _train(method, 0, 1)
    start = narrow_simsiam()
    online = [*start.encoder.parameters(), *start.projector.parameters()]
    for old, new in zip(method.frozen.parameters(), online, strict=True):
        assert torch.equal(old, new), "θᵗ is the network before the period's first step"
    assert any(not torch.equal(method.frozen.state_dict()[name], before[name]) for name in before)


def test_long_assignment_logs_its_progress(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(alternation, "LOG_SECONDS", 0.0)
    with caplog.at_level("INFO", logger="pretrain"):
        _train(narrow_method(Alternation, 3), 0, 1)
    lines = [record.getMessage() for record in caplog.records if record.name == alternation.__name__]
    assert [line.split(" computed")[0] for line in lines] == [f"targets of {n} of the next 3 steps" for n in (1, 2, 3)]
    assert lines[-1].endswith(", 0 s to go")
