"""A training step: its parts, its guards, and what it logs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from detectron2.engine.train_loop import HookBase
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pretrain.data.dataset import Batch
from pretrain.engine import trainer as engine
from pretrain.engine.trainer import Trainer
from pretrain.methods.base import Method
from pretrain.methods.simsiam import SimSiam
from ssl_transfer.training.divergence import Diverged
from tests.pretrain.engine.narrow_runs import apart, batches, narrow_trainer


class _Record(HookBase):
    """What the storage holds after each step."""

    trainer: Trainer

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def after_step(self) -> None:
        latest = self.trainer.storage.latest()
        self.rows.append({name: value for name, (value, step) in latest.items() if step == self.trainer.iter})


def _train(trainer: Trainer, steps: int) -> _Record:
    record = _Record()
    trainer.register_hooks([record])
    trainer.train(0, steps)
    return record


def _without_norms(trainer: Trainer) -> Trainer:
    for module in trainer.method.modules():
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, nn.Identity())
    return trainer


def test_without_batch_norm_accumulated_parts_equal_the_whole_batch() -> None:
    runs = {}
    for parts in (1, 4):
        trainer = _without_norms(narrow_trainer(stop=3, accumulate=parts))
        runs[parts] = _train(trainer, 3).rows, trainer.method.state_dict()
    assert apart(runs[4][1], runs[1][1]) < 1e-10
    for mine, whole in zip(runs[4][0], runs[1][0], strict=True):
        for key in ("loss", "std", "grad_norm"):
            assert mine[key] == pytest.approx(whole[key], rel=1e-9)


def test_with_batch_norm_each_part_is_normalized_separately() -> None:
    (batch,) = batches(0, 1)
    trainer = narrow_trainer(stop=1, accumulate=4)
    whole, by_hand = (copy.deepcopy(trainer.method) for _ in range(2))
    _train(trainer, 1)
    whole(*batch.views).loss.backward()
    for part in range(4):
        samples = slice(4 * part, 4 * part + 4)
        (by_hand(*(view[samples] for view in batch.views)).loss / 4).backward()
    gradients = [
        {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
        for method in (trainer.method, by_hand, whole)
    ]
    assert apart(gradients[0], gradients[1]) < 1e-12 < 1e-2 < apart(gradients[0], gradients[2])
    # Each part moves the running statistics, so that a step of four moves them four times.
    assert int(trainer.method.encoder.bn1.num_batches_tracked) == 4 * int(whole.encoder.bn1.num_batches_tracked) == 8


def test_a_method_sees_each_part_before_its_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, seen = narrow_trainer(stop=2, accumulate=2), []
    monkeypatch.setattr(trainer.method, "before_step", lambda iteration, part: seen.append((iteration, part)))
    _train(trainer, 2)
    assert [iteration for iteration, _ in seen] == [0, 0, 1, 1]
    assert [part.indices.tolist() for _, part in seen[:2]] == [list(range(8)), list(range(8, 16))]
    assert all(len(view) == 8 for _, part in seen for view in part.views)


def test_a_method_is_called_after_backward_and_after_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, seen = narrow_trainer(stop=2, accumulate=2), []
    weight = trainer.method.encoder.conv1.weight
    monkeypatch.setattr(
        trainer.method, "after_backward", lambda i: seen.append((i, "grad", weight.clone(), weight.grad.clone()))
    )
    monkeypatch.setattr(trainer.method, "after_step", lambda i: seen.append((i, "step", weight.clone(), None)))
    before = weight.detach().clone()
    _train(trainer, 2)
    assert [(i, what) for i, what, *_ in seen] == [(0, "grad"), (0, "step"), (1, "grad"), (1, "step")]
    assert torch.equal(seen[0][2], before) and not torch.equal(seen[1][2], before)
    assert torch.equal(seen[1][2], seen[2][2]) and seen[0][3].abs().sum() > 0


def test_a_method_can_freeze_a_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = narrow_trainer(stop=3)
    weight = trainer.method.encoder.conv1.weight
    before = weight.detach().clone()
    monkeypatch.setattr(trainer.method, "after_backward", lambda i: setattr(weight, "grad", None) if i < 2 else None)
    rows = _train(trainer, 2).rows
    assert torch.equal(weight, before) and len(rows) == 2


def test_further_metrics_are_means_over_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, forward = narrow_trainer(stop=1, accumulate=2), SimSiam.forward
    values = iter([1.0, 4.0])

    def with_metrics(self: SimSiam, *views: torch.Tensor) -> Any:
        return forward(self, *views)._replace(metrics={"top1": torch.tensor(next(values)), "best": torch.tensor(7.0)})

    monkeypatch.setattr(SimSiam, "forward", with_metrics)
    row = _train(trainer, 1).rows[0]
    assert (row["top1"], row["best"]) == (2.5, 7.0) and 0 < row["std"] < 1


def test_the_gradient_norm_is_logged() -> None:
    (batch,) = batches(0, 1)
    trainer = narrow_trainer(stop=1)
    method = copy.deepcopy(trainer.method)
    row = _train(trainer, 1).rows[0]
    method(*batch.views).loss.backward()
    flat = torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None])
    assert row["grad_norm"] == pytest.approx(float(flat.norm()), rel=1e-12)
    assert row["data_time"] > 0 and 0 < row["data_time_share"] < 1 and "skipped" not in row


def _spoil(trainer: Trainer, at: int, factor: float) -> None:
    """Multiply one gradient by `factor` at an iteration."""
    weight = trainer.method.encoder.conv1.weight
    weight.register_hook(lambda grad: grad * factor if trainer.iter >= at else grad)


@pytest.mark.parametrize(("factor", "what"), [(float("nan"), "norm is nan"), (float("inf"), "norm is (inf|nan)")])
def test_a_gradient_that_is_not_finite_ends_the_run(factor: float, what: str) -> None:
    trainer = narrow_trainer(stop=5)
    _spoil(trainer, 2, factor)
    with pytest.raises(Diverged, match=rf"the gradient's {what} at iteration 2, learning rate 0.05, 0.05"):
        _train(trainer, 5)


def test_a_gradient_above_the_limit_ends_the_run_and_one_below_does_not() -> None:
    norms = [row["grad_norm"] for row in _train(narrow_trainer(stop=3), 3).rows]
    limit = max(norms) * 1.01
    assert len(_train(narrow_trainer(stop=3, grad_norm_limit=limit), 3).rows) == 3
    trainer = narrow_trainer(stop=3, grad_norm_limit=limit)
    _spoil(trainer, 1, 1e6)
    with pytest.raises(Diverged, match=r"above MONITOR.GRAD_NORM_LIMIT .* at iteration 1, learning rate"):
        _train(trainer, 3)


class _Line(Method):
    """A method with one layer."""

    dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 4)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> Any:
        z = self.encoder(first)
        return engine.MethodOutput((z.float() - second.mean()).square().mean(), z.detach())


def _line_trainer() -> Trainer:
    torch.manual_seed(0)
    method = _Line()
    views = [Batch((torch.rand(6, 3), torch.rand(6, 3)), torch.arange(6)) for _ in range(60)]
    optimizer = torch.optim.SGD([{"params": method.parameters(), "name": "base", "fixed_lr": False}], lr=0.1)
    return Trainer(method, optimizer, iter(views), precision="fp16")  # type: ignore[arg-type]


def test_a_step_skipped_by_the_fp16_scaler_is_no_divergence() -> None:
    trainer = _line_trainer()
    weight = trainer.method.encoder.weight
    weight.register_hook(lambda grad: grad * float("inf") if trainer.iter in (1, 2) else grad)
    weights: list[torch.Tensor] = []

    class Keep(HookBase):
        def after_step(self) -> None:
            weights.append(weight.detach().clone())

    trainer.register_hooks([Keep()])
    rows = _train(trainer, 5).rows
    assert [row["skipped"] for row in rows] == [0, 1, 1, 0, 0]
    assert ["grad_norm" in row for row in rows] == [True, False, False, True, True]
    assert torch.equal(weights[0], weights[2]) and not torch.equal(weights[2], weights[3])
    assert trainer.scaler.get_scale() == 2.0**14
    assert rows[0]["grad_norm"] < 10  # of the gradient itself, not of the scaled one


def test_a_gradient_that_is_never_finite_is_a_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MAX_SKIPPED", 3)
    trainer = _line_trainer()
    trainer.method.encoder.weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(Diverged, match="not been finite for 4 steps, however small fp16's scale at iteration 3"):
        _train(trainer, 9)
