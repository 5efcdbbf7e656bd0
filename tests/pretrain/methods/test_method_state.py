"""What alternation and moving averages carry from step to step: over a stop, and over several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm

from pretrain.config import defaults
from pretrain.data.dataset import Batch
from pretrain.engine.trainer import Trainer
from pretrain.methods.alternation import Alternation
from pretrain.methods.base import TrainingInfo
from pretrain.methods.moving_average import MovingAverage
from pretrain.methods.simsiam import SimSiam
from pretrain.models.batch_norm import convert_sync_batch_norm
from pretrain.optim.optimizer import build_sgd
from ssl_transfer.training.distributed import launch
from tests.pretrain.golden import narrow
from tests.pretrain.golden.ours import narrow_method
from tests.pretrain.methods.stops import assert_ends_the_same, narrow_encoders

Command = Callable[..., int]
STEPS, IMAGES = 7, 3 * narrow.BATCH

ALTERNATION = ["METHOD", "alternation", "SIMSIAM.ALTERNATION_STEPS"]
AVERAGE = ["METHOD", "moving_average", "MODEL.PREDICTOR", "none", "SIMSIAM.AVERAGE_START"]


@pytest.fixture
def narrow_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every encoder is the golden values' narrow one, so that a step takes milliseconds."""
    narrow_encoders(monkeypatch)


@pytest.mark.usefixtures("narrow_encoder")
@pytest.mark.parametrize(
    ("words", "workers"),
    [
        ([*ALTERNATION, "4"], "0"),
        ([*ALTERNATION, "5"], "2"),
        ([*ALTERNATION, "0"], "0"),
        ([*AVERAGE, "random"], "0"),
        ([*AVERAGE, "first"], "0"),
    ],
)
def test_run_resumed_within_a_period_ends_bit_for_bit_the_same(
    pretrain: Command, tmp_path: Path, words: list[str], workers: str
) -> None:
    words = [*words, "CHECKPOINT.PERIOD", "1", "CHECKPOINT.KEEP", "1"]
    assert_ends_the_same(pretrain, tmp_path, words, (2, 5), ["DATA.WORKERS", workers])  # an epoch has 3


def _methods() -> dict[str, SimSiam]:
    return {
        "alternation": narrow_method(Alternation, 3),
        "random": narrow_method(MovingAverage, 0.8, "random", predict=False),
        "first": narrow_method(MovingAverage, 0.8, "first", predict=False),
    }


def _batches(first: int) -> Iterator[Batch]:
    """This process's share of each step, strided as in ResumableBatchSampler; an epoch has three steps."""
    rank, world = comm.get_rank(), comm.get_world_size()
    for step in range(first, STEPS):
        indices = torch.arange(narrow.BATCH) + narrow.BATCH * (step % 3)
        yield Batch(tuple(view[rank::world] for view in narrow.images(step)), indices[rank::world])


def _train_each(folder: str) -> None:
    world = comm.get_world_size()
    cfg = defaults()
    cfg.SOLVER.BASE_LR = 0.05
    for name, method in _methods().items():
        if world > 1:
            method = convert_sync_batch_norm(method, torch.device("cpu"))
        torch.manual_seed(0)
        method.prepare(TrainingInfo(IMAGES, 3, STEPS, _batches))
        trainer = Trainer(method, build_sgd(method, cfg), _batches(0))
        trainer.train(0, STEPS)
        latest = torch.tensor(list(trainer.latest.values()))
        torch.save({**method.state_dict(), "latest": latest}, f"{folder}/{name}_{world}_{comm.get_rank()}.pt")


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """In float64: sums in another order show in the last digits (2e-11 was measured); both hold the same bank."""
    for count in (1, 2):
        launch(_train_each, (str(tmp_path),), count)
    for name in _methods():
        one, two, other = (torch.load(tmp_path / f"{name}_{place}.pt") for place in ("1_0", "2_0", "2_1"))
        assert one.keys() == two.keys()
        for key in one:
            furthest = (two[key].double() - one[key].double()).abs().max() / one[key].double().abs().max().clamp(1e-3)
            assert furthest < 1e-9, f"{name} {key}"
            assert torch.equal(two[key], other[key]), f"{name} {key} differs between the processes"
        if name != "alternation":
            assert bool(two["seen"].all())
