"""SwAV against the original code, step by step, in float64; and that the comparison notices what matters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.engine.train_loop import HookBase
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pretrain.config import check_config, defaults
from pretrain.data.dataset import Batch
from pretrain.engine.trainer import Trainer
from pretrain.methods import build_method
from pretrain.methods.base import TrainingInfo
from pretrain.methods.swav import NORMALIZED, WEIGHT_NORM, SwAV
from ssl_transfer.errors import UserError
from tests.pretrain.golden import narrow
from tests.pretrain.golden import narrow_contrast as fixed
from tests.pretrain.golden.ours_contrast import FROZEN_AND_QUEUED, narrow_swav

FOLDER = Path(__file__).resolve().parents[1] / "golden"
GOLDEN, INSIDE = (json.loads((FOLDER / f"{name}.json").read_text()) for name in ("swav", "swav_weight_norm"))
# Of facebookresearch/swav at 06b1b7c, main_swav.py: train; the second with torch's weight norm on the prototypes.
RUNS = {**GOLDEN["runs"], **{f"{name}, {WEIGHT_NORM}": run for name, run in INSIDE["runs"].items()}}
TOTAL = narrow.STEPS_PER_EPOCH * narrow.EPOCHS
PLAIN = {k: FROZEN_AND_QUEUED[k] for k in ("prototypes", "freeze_steps")}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "queue": FROZEN_AND_QUEUED,
    f"plain, {WEIGHT_NORM}": {**PLAIN, "prototype_norm": WEIGHT_NORM},
    f"queue, {WEIGHT_NORM}": {**FROZEN_AND_QUEUED, "prototype_norm": WEIGHT_NORM},
}


class _Record(HookBase):
    trainer: Trainer

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.prototypes: list[torch.Tensor] = []

    def after_step(self) -> None:
        assert isinstance(self.trainer.method, SwAV)
        self.losses.append(self.trainer.latest["loss"])
        self.prototypes.append(self.trainer.method.prototypes.weight.detach().clone())


def _train(method: SwAV) -> _Record:
    images = narrow.BATCH * narrow.STEPS_PER_EPOCH
    method.prepare(TrainingInfo(images, narrow.STEPS_PER_EPOCH, TOTAL, lambda _first: iter(())))
    batches = iter([Batch(narrow.images(step), torch.arange(narrow.BATCH)) for step in range(TOTAL)])
    sgd = torch.optim.SGD(method.parameters(), fixed.LR, narrow.MOMENTUM, weight_decay=narrow.WEIGHT_DECAY)
    trainer, record = Trainer(method, sgd, batches), _Record()
    trainer.register_hooks([record])
    trainer.train(0, TOTAL)
    return record


def _furthest(losses: list[float], name: str) -> float:
    return max(abs(ours / theirs - 1) for ours, theirs in zip(losses, RUNS[name]["losses"], strict=True))


@pytest.mark.parametrize("name", RUNS)
def test_losses_and_weights_equal_the_original(name: str) -> None:
    method = narrow_swav(**ARGUMENTS[name])
    assert _furthest(_train(method).losses, name) < 1e-9
    ends = narrow.checksums(method)
    assert {key for key in ends if not key.startswith("queues.")} == RUNS[name]["end"].keys()
    for key, value in RUNS[name]["end"].items():
        assert ends[key] == pytest.approx(value, rel=1e-8, abs=1e-8), key


def _no_unit_prototypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SwAV, "before_step", lambda self, iteration, _batch: setattr(self, "_queue_age", iteration - 4))


def _moved_though_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SwAV, "after_backward", lambda _self, _iteration: None)


@pytest.mark.parametrize("mutate", [_no_unit_prototypes, _moved_though_frozen])
def test_missing_hook_is_detected(monkeypatch: pytest.MonkeyPatch, mutate: Callable[..., None]) -> None:
    mutate(monkeypatch)
    assert _furthest(_train(narrow_swav(**ARGUMENTS["queue"])).losses, "queue") > 1e-4


def _detached_length(monkeypatch: pytest.MonkeyPatch) -> None:
    def scores(self: SwAV, outputs: torch.Tensor) -> torch.Tensor:
        weight = self.prototypes.weight
        return F.linear(outputs, weight / weight.detach().norm(dim=1, keepdim=True))

    monkeypatch.setattr(SwAV, "_scores", scores)


def _scaled_in_place_too(monkeypatch: pytest.MonkeyPatch) -> None:
    before = SwAV.before_step

    def scale(self: SwAV, iteration: int, batch: Batch) -> None:
        before(self, iteration, batch)
        self.prototypes.weight.data = F.normalize(self.prototypes.weight.detach(), dim=1)

    monkeypatch.setattr(SwAV, "before_step", scale)


@pytest.mark.parametrize("mutate", [_detached_length, _scaled_in_place_too, _moved_though_frozen])
def test_the_comparison_of_weight_norm_notices(
    monkeypatch: pytest.MonkeyPatch, mutate: Callable[[pytest.MonkeyPatch], None]
) -> None:
    name = f"queue, {WEIGHT_NORM}"
    mutate(monkeypatch)
    assert _furthest(_train(narrow_swav(**ARGUMENTS[name])).losses, name) > 1e-4


@pytest.mark.parametrize("name", RUNS)
def test_the_comparison_tells_the_forms_apart(name: str) -> None:
    other = NORMALIZED if name.endswith(WEIGHT_NORM) else WEIGHT_NORM
    method = narrow_swav(**{**ARGUMENTS[name], "prototype_norm": other})
    assert _furthest(_train(method).losses, name) > 1e-4


@pytest.mark.parametrize(("stop_gradient", "expected"), [(True, 0.35), (False, 0.25)])
def test_prototypes_gradients_differ_between_the_forms(stop_gradient: bool, expected: float) -> None:
    """At the same unit prototypes the values are equal; the gradient loses its part along each prototype."""
    arguments = {"prototypes": 10, "stop_gradient": stop_gradient}
    outer, inner = (narrow_swav(**arguments, prototype_norm=norm) for norm in (NORMALIZED, WEIGHT_NORM))
    losses = []
    for method in (outer, inner):
        method.prototypes.weight.data = F.normalize(method.prototypes.weight.detach(), dim=1)
        losses.append(method(*narrow.images(0)).loss)
        losses[-1].backward()
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-12)
    gradient, inside = outer.prototypes.weight.grad, inner.prototypes.weight.grad
    assert gradient is not None and inside is not None
    unit = inner.prototypes.weight.detach()
    along = (gradient * unit).sum(1, keepdim=True) * unit
    torch.testing.assert_close(inside, gradient - along, rtol=1e-9, atol=1e-12)
    assert (inside - gradient).norm() > expected * gradient.norm()


@pytest.mark.parametrize(
    "mutation",
    [
        {"temperature": 0.101},
        {"epsilon": 0.0505},
        {"sinkhorn_steps": 2},
        {"freeze_steps": fixed.FREEZE - 1},
        {"freeze_steps": fixed.FREEZE + 1},
        {"stop_gradient": False},
        {"queue_steps": 1},
        {"queue_steps": 3},
        {"queue_start": 0},
    ],
)
def test_a_change_is_detected_by_the_comparison(mutation: dict[str, Any]) -> None:
    assert _furthest(_train(narrow_swav(**{**ARGUMENTS["queue"], **mutation})).losses, "queue") > 1e-4


def _identity(prototypes: int) -> SwAV:
    """A method whose scores are its outputs."""
    method = SwAV(nn.Identity(), nn.Identity(), None, prototypes, prototypes=prototypes).double()  # type: ignore[arg-type]
    with torch.no_grad():
        method.prototypes.weight.copy_(torch.eye(prototypes))
    return method


def _from_lightly(steps: int = fixed.SINKHORN_STEPS) -> float:
    """How far the swapped prediction's value and gradients are from lightly-ai/lightly's at e8d317f."""
    first, second = fixed.scores()
    method, theirs = _identity(fixed.PROTOTYPES), GOLDEN["swapped"]
    method.sinkhorn_steps = steps
    q1, q2 = (method._codes(scores, view) for view, scores in enumerate((first, second)))
    loss = (method._swapped_loss(first, q2) + method._swapped_loss(second, q1)) / 2
    loss.backward()
    apart = [abs(loss.item() / theirs["loss"] - 1)]
    gradients = torch.tensor(theirs["gradients"], dtype=torch.float64)
    for ours, expected in zip((first.grad, second.grad), gradients, strict=True):
        assert ours is not None
        apart.append(float((ours - expected).abs().max()))
    return max(apart)


def test_swapped_loss_equals_lightly() -> None:
    assert _from_lightly() < 1e-10


def test_one_sinkhorn_step_fewer_is_detected() -> None:
    assert _from_lightly(steps=2) > 1e-3


@pytest.mark.parametrize("name", ["plain", f"plain, {WEIGHT_NORM}"])
def test_momentum_and_decay_do_not_change_frozen_prototypes(name: str) -> None:
    seen = _train(narrow_swav(**ARGUMENTS[name])).prototypes
    for step in range(1, fixed.FREEZE):
        torch.testing.assert_close(seen[step], seen[0], rtol=1e-14, atol=1e-14)
    assert not torch.allclose(seen[fixed.FREEZE], seen[0], rtol=1e-3)


def _written_out(method: SwAV, views: tuple[torch.Tensor, ...], stop_gradient: bool) -> torch.Tensor:
    """The loss by divisions, from the outputs of the method's own networks."""
    z = method.projector(method.encoder(torch.cat(views)))
    p = z if method.predictor is None else method.predictor(z)
    weight = method.prototypes.weight
    weight = weight / weight.pow(2).sum(1, keepdim=True).sqrt() if method.prototype_norm == WEIGHT_NORM else weight
    loss = torch.zeros((), dtype=torch.float64)
    for own, other in ((0, 1), (1, 0)):
        q = (F.normalize(z, dim=1).chunk(2)[own] @ weight.t() / 0.05).exp()
        for _ in range(3):
            q = q / q.sum(0)
            q = q / q.sum(1, keepdim=True)
        q = q.detach() if stop_gradient else q
        logits = F.normalize(p, dim=1).chunk(2)[other] @ weight.t() / 0.1
        loss = loss - (q * (logits - logits.exp().sum(1, keepdim=True).log())).sum(1).mean() / 2
    return loss


@pytest.mark.parametrize("norm", [NORMALIZED, WEIGHT_NORM])
@pytest.mark.parametrize(("predict", "stop_gradient"), [(False, True), (True, True), (False, False)])
def test_loss_and_gradients_equal_the_definition(predict: bool, stop_gradient: bool, norm: str) -> None:
    """The predictor is on the branch that predicts; without stop-gradient the gradient flows through Sinkhorn."""
    arguments: dict[str, Any] = {"prototypes": 10, "prototype_norm": norm, "stop_gradient": stop_gradient}
    method, written = (narrow_swav(predict, **arguments).train() for _ in range(2))
    for one in (method, written):
        one.before_step(0, Batch(narrow.images(0), torch.arange(narrow.BATCH)))
    output, loss = method(*narrow.images(0)), _written_out(written, narrow.images(0), stop_gradient)
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-12)
    assert output.embedding.shape == (narrow.BATCH, narrow.DIM) and not output.embedding.requires_grad
    output.loss.backward(), loss.backward()
    for (name, ours), theirs in zip(method.named_parameters(), written.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None and theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-11, msg=name)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_scores_and_codes_are_float32_in_half_precision(half: torch.dtype) -> None:
    """Of outputs that came in half precision, at the ends of the range: all alike, and opposite to prototypes."""
    z = torch.tensor([[1.0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0]]).to(half).requires_grad_()
    method = SwAV(nn.Identity(), nn.Identity(), None, 3, prototypes=3)  # type: ignore[arg-type]
    with torch.no_grad():
        method.prototypes.weight.copy_(torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 0, 1]]))
    with torch.autocast("cpu", half):
        loss = method(z, z.detach()).loss
    loss.backward()
    assert loss.dtype == torch.float32 and z.grad is not None and bool(z.grad.isfinite().all())
    whole = method.double()(z.detach().double(), z.detach().double()).loss
    assert loss.item() == pytest.approx(whole.item(), rel=1e-5)


def _small(**keys: Any) -> Any:
    cfg = defaults()
    cfg.METHOD = "swav"
    cfg.MODEL.update(ARCH="resnet18", PROJ_HIDDEN=8, DIM=4, PREDICTOR="none", HEAD_BN="hidden")
    cfg.SOLVER.BATCH_SIZE = 4
    cfg.SWAV.update(PROTOTYPES=5, QUEUE=8, QUEUE_START=0, **keys)
    return cfg


@pytest.mark.skipif(
    not torch.cuda.is_available() and torch.__version__ < (2, 14),
    reason="torch 2.9 asks the driver for a GPU even under FakeTensorMode; 2.14 does not",
)
def test_queue_stays_on_the_device_without_synchronizing() -> None:
    """Forward on a fake GPU, the queue empty, filled and full."""
    with FakeTensorMode():
        with torch.device("cuda"):
            method = build_method(_small(STOP_GRADIENT=False)).train()
            views = torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32)
        method.prepare(TrainingInfo(8, 2, 4, lambda _first: iter(())))
        for step in range(4):
            method.before_step(step, Batch(views, torch.arange(4)))
            output = method(*views)
            assert output.loss.device.type == output.embedding.device.type == "cuda"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"QUEUE": 6}, "SWAV.QUEUE is 6; it must be a multiple of SOLVER.BATCH_SIZE, which is 4"),
        ({"QUEUE": 0, "QUEUE_START": 3}, "SWAV.QUEUE_START is 3; SWAV.QUEUE is 0: there is no queue to start"),
        ({"QUEUE_START": 100}, "SWAV.QUEUE_START is 100; it must be less than SOLVER.EPOCHS, which is 100"),
        ({"SINKHORN_STEPS": 0}, "SWAV.SINKHORN_STEPS is 0; it must be 1 or more"),
        ({"PROTOTYPES": 0}, "SWAV.PROTOTYPES is 0"),
        ({"TEMPERATURE": 0.0}, "SWAV.TEMPERATURE is 0.0; it must be above 0"),
        ({"EPSILON": -1.0}, "SWAV.EPSILON"),
        ({"FREEZE_STEPS": -1}, "SWAV.FREEZE_STEPS"),
        ({"PROTOTYPE_NORM": "weightnorm"}, "SWAV.PROTOTYPE_NORM is 'weightnorm', which does not exist"),
    ],
)
def test_invalid_values_are_refused(keys: dict[str, Any], said: str) -> None:
    cfg = _small()
    check_config(cfg)
    cfg.SWAV.update(keys)
    with pytest.raises(UserError, match=said):
        check_config(cfg)


def test_queue_with_compile_is_refused() -> None:
    cfg = _small()
    cfg.ENGINE.COMPILE = True
    with pytest.raises(UserError, match=r"ENGINE.COMPILE is True; with SWAV.QUEUE it must be False"):
        check_config(cfg)


def test_other_methods_refuse_the_keys() -> None:
    cfg = defaults()
    cfg.SWAV.PROTOTYPES = 100
    with pytest.raises(UserError, match=r"SWAV.PROTOTYPES is 100; METHOD simsiam does not read it"):
        check_config(cfg)
