"""Moving averages against the update written out row by row."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pretrain.data.dataset import Batch
from pretrain.methods.base import TrainingInfo
from pretrain.methods.moving_average import MovingAverage
from pretrain.methods.simsiam import PAIRS, SimSiam
from tests.pretrain.golden import narrow
from tests.pretrain.golden.ours import narrow_method

IMAGES = 2 * narrow.BATCH
BATCHES = [torch.randperm(IMAGES, generator=torch.Generator().manual_seed(s))[: narrow.BATCH] for s in range(4)]


def _method(start: str, symmetry: str = "symmetric", momentum: float = 0.8) -> MovingAverage:
    method = narrow_method(MovingAverage, momentum, start, predict=False, pairs=PAIRS[symmetry]).train()
    torch.manual_seed(11)
    method.prepare(TrainingInfo(IMAGES, 2, 4, lambda first: iter(())))
    return method


def _views(step: int, count: int) -> list[torch.Tensor]:
    return [*narrow.images(step), *narrow.images(step + 100)][:count]


@pytest.mark.parametrize("symmetry", PAIRS)
@pytest.mark.parametrize("start", ["random", "first"])
def test_losses_and_bank_equal_the_definition(start: str, symmetry: str) -> None:
    method = _method(start, symmetry)
    plain = narrow_method(SimSiam, predict=False).train()
    bank: dict[int, torch.Tensor] = {}
    if start == "random":
        torch.manual_seed(11)
        bank = dict(enumerate(torch.randn(IMAGES, narrow.DIM, dtype=torch.float64)))
    for step, indices in enumerate(BATCHES):
        views = _views(step, method.views)
        method.before_step(step, Batch(tuple(views), indices))
        loss = method(*views).loss
        z = [plain.projector(plain.encoder(view)).detach() for view in views]
        terms = []
        for row, image in enumerate(indices.tolist()):
            moved = []
            for i, j in PAIRS[symmetry]:
                new = 0.8 * bank[image] + 0.2 * z[j][row] if image in bank else z[j][row]
                moved.append(new)
                terms.append(-F.cosine_similarity(z[i][row], new, dim=0))
            bank[image] = sum(moved, torch.zeros(narrow.DIM)) / len(moved)
        assert loss.item() == pytest.approx(float(torch.stack(terms).mean()), rel=1e-12)
    assert bool(method.seen.all()) == (start == "random")
    for image in range(IMAGES):
        assert bool(method.seen[image]) == (image in bank)
        if image in bank:
            torch.testing.assert_close(method.bank[image], bank[image], rtol=1e-11, atol=1e-12)


def test_first_epoch_with_first_start_equals_simsiam_without_predictor() -> None:
    method, plain = _method("first"), narrow_method(SimSiam, predict=False).train()
    method.before_step(0, Batch(narrow.images(0), torch.arange(narrow.BATCH)))
    ours, theirs = method(*narrow.images(0)).loss, plain(*narrow.images(0)).loss
    ours.backward(), theirs.backward()
    assert ours.item() == theirs.item()
    for mine, other in zip(method.parameters(), plain.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None) and (mine.grad is None or torch.equal(mine.grad, other.grad))


def test_momentum_zero_equals_simsiam_without_predictor() -> None:
    method, plain = _method("random", momentum=0.0), narrow_method(SimSiam, predict=False).train()
    method.before_step(0, Batch(narrow.images(0), torch.arange(narrow.BATCH)))
    assert method(*narrow.images(0)).loss.item() == pytest.approx(plain(*narrow.images(0)).loss.item(), rel=1e-13)


def test_bank_is_a_buffer() -> None:
    method, other = _method("random"), _method("first")
    assert {"bank", "seen"} <= method.state_dict().keys() and method.bank.shape == (IMAGES, narrow.DIM)
    assert "bank" not in dict(method.named_parameters())
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.bank, method.bank) and torch.equal(other.seen, method.seen)
    assert 0.9 < float(method.bank.std()) < 1.1, "normal numbers, as the output BN's"
