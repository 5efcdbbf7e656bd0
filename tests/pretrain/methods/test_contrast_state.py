"""What SimCLR and SwAV compare over several processes, and what SwAV carries from step to step over a stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm

from pretrain.data.dataset import Batch
from pretrain.engine.trainer import Trainer
from pretrain.methods import simclr
from pretrain.methods.base import Method, TrainingInfo
from pretrain.methods.parts.losses import sinkhorn
from pretrain.models.batch_norm import convert_sync_batch_norm
from ssl_transfer.training.collectives import all_gather, all_gather_with_grad, rank_offset
from ssl_transfer.training.distributed import launch
from tests.pretrain.golden import narrow
from tests.pretrain.golden import narrow_contrast as fixed
from tests.pretrain.golden.ours_contrast import FROZEN_AND_QUEUED, narrow_simclr, narrow_swav
from tests.pretrain.methods.stops import assert_ends_the_same, narrow_encoders

Command = Callable[..., int]
STEPS = 7

# -- two processes


def _methods() -> dict[str, Method]:
    few = {"prototypes": fixed.RUN_PROTOTYPES, "freeze_steps": 2}
    return {
        "simclr": narrow_simclr(),
        "simclr_predictor": narrow_simclr(predict=True, stop_gradient=True),
        "swav": narrow_swav(**few),
        "swav_queue": narrow_swav(**{**FROZEN_AND_QUEUED, "queue_start": 0}),
        "swav_nostopgrad": narrow_swav(predict=True, stop_gradient=False, prototype_norm="weight_norm", **few),
    }


def _batches() -> Iterator[Batch]:
    """This process's share of each step, strided as ResumableBatchSampler strides."""
    rank, world = comm.get_rank(), comm.get_world_size()
    for step in range(STEPS):
        yield Batch(tuple(view[rank::world] for view in narrow.images(step)), torch.arange(narrow.BATCH)[rank::world])


def _trained(method: Method) -> dict[str, torch.Tensor]:
    if comm.get_world_size() > 1:
        method = convert_sync_batch_norm(method, torch.device("cpu"))
    method.prepare(TrainingInfo(3 * narrow.BATCH, 3, STEPS, lambda _first: iter(())))
    sgd = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], fixed.LR, narrow.MOMENTUM)
    trainer = Trainer(method, sgd, _batches())
    trainer.train(0, STEPS)
    return {**method.state_dict(), "latest": torch.tensor(list(trainer.latest.values()), dtype=torch.float64)}


def _gather_and_assign() -> dict[str, torch.Tensor]:
    """The pieces alone, on parts of different sizes where they may differ."""
    rank, world = comm.get_rank(), comm.get_world_size()
    z = fixed.outputs()[0].detach()[rank::world].requires_grad_()
    joined = all_gather_with_grad(z)
    weights = 1.0 + rank + torch.arange(joined.numel(), dtype=torch.float64).view_as(joined)
    (joined * weights).sum().backward()  # each process's loss is another
    share = slice(None) if world == 1 else (slice(0, 2), slice(2, None))[rank]
    scores = fixed.scores()[0].detach()[share].requires_grad_()
    codes = sinkhorn(scores, fixed.EPSILON, fixed.SINKHORN_STEPS)
    (codes * fixed.scores()[1].detach()[share]).sum().backward()
    assert z.grad is not None and scores.grad is not None
    row = torch.tensor(rank_offset(z))
    return {"joined": joined.detach(), "row": row, "z": z.grad, "codes": codes.detach(), "scores": scores.grad}


def _work(folder: str) -> None:
    place = f"{comm.get_world_size()}_{comm.get_rank()}.pt"
    torch.save(_gather_and_assign(), f"{folder}/pieces_{place}")
    for name, method in _methods().items():
        torch.save(_trained(method), f"{folder}/{name}_{place}")
    if dist.is_initialized():
        simclr.all_gather_with_grad = all_gather  # type: ignore[attr-defined]  # the mutation: others' losses teach nothing
        torch.save(_trained(narrow_simclr()), f"{folder}/mutant_{place}")


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what one process and each of two ended with."""
    folder = tmp_path_factory.mktemp("ends")
    for count in (1, 2):
        launch(_work, (str(folder),), count)
    return folder


def _apart(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(
        float((ours[name].double() - other.double()).abs().max() / other.double().abs().max().clamp(1e-3))
        for name, other in theirs.items()
    )


@pytest.mark.parametrize("name", ["simclr", "simclr_predictor", "swav", "swav_queue", "swav_nostopgrad"])
def test_two_processes_equal_one_with_the_whole_batch(ends: Path, name: str) -> None:
    """In float64; the queue holds each step's rows in another order, which no assignment depends on."""
    one, two, other = (torch.load(ends / f"{name}_{place}.pt") for place in ("1_0", "2_0", "2_1"))
    for key in (key for key in one if key.endswith(".keys")):
        one[key], two[key], other[key] = (_sorted(state[key]) for state in (one, two, other))
    assert _apart(two, one) < 1e-8
    assert all(torch.equal(two[key], other[key]) for key in two), "the processes hold different states"


def _sorted(rows: torch.Tensor) -> torch.Tensor:
    return rows[rows[:, 0].argsort()]


def test_gather_without_gradient_is_detected(ends: Path) -> None:
    one, mutant = torch.load(ends / "simclr_1_0.pt"), torch.load(ends / "mutant_2_0.pt")
    assert _apart(mutant, one) > 1e-4


def test_gathered_rows_get_the_summed_gradient(ends: Path) -> None:
    one, first, second = (torch.load(ends / f"pieces_{place}.pt") for place in ("1_0", "2_0", "2_1"))
    order = [0, 2, 4, 1, 3, 5]  # rank 0's rows come first
    assert torch.equal(one["joined"], fixed.outputs()[0]) and torch.equal(one["z"], 1 + torch.arange(30).view(6, 5))
    for two in (first, second):
        assert torch.equal(two["joined"], one["joined"][order])
    assert (first["row"], second["row"]) == (0, 3)
    expected = 3.0 + 2 * torch.arange(30, dtype=torch.float64).view(6, 5)  # (1 + n) + (2 + n)
    assert torch.equal(torch.cat([first["z"], second["z"]]), expected)


def test_codes_of_uneven_parts_equal_those_of_the_whole_batch(ends: Path) -> None:
    one, first, second = (torch.load(ends / f"pieces_{place}.pt") for place in ("1_0", "2_0", "2_1"))
    for key in ("codes", "scores"):
        torch.testing.assert_close(torch.cat([first[key], second[key]]), one[key], rtol=1e-10, atol=1e-13)


# -- a stop


@pytest.fixture
def narrow_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every encoder is the golden values' narrow one, so that a step takes milliseconds."""
    narrow_encoders(monkeypatch)


SWAV = ["METHOD", "swav", "MODEL.HEAD_BN", "hidden", "SWAV.PROTOTYPES", "7", "SWAV.FREEZE_STEPS", "3"]


@pytest.mark.usefixtures("narrow_encoder")
@pytest.mark.parametrize(
    "words", [["METHOD", "simclr"], SWAV, [*SWAV, "SWAV.QUEUE", "8", "SWAV.QUEUE_START", "1"]], ids=lambda w: w[-2]
)
def test_resumed_run_ends_bit_for_bit_the_same(pretrain: Command, tmp_path: Path, words: list[str]) -> None:
    """Of 6 steps, 3 an epoch: stopped with prototypes frozen, and with the queue half filled."""
    words = [*words, "SOLVER.BASE_LR", "0.8", "CHECKPOINT.PERIOD", "1", "CHECKPOINT.KEEP", "1"]
    ours = assert_ends_the_same(pretrain, tmp_path, words, (2, 4))
    if "SWAV.QUEUE" in words:
        assert ours["queues.0.keys"].shape == (8, 16) and not torch.equal(ours["queues.0.keys"], ours["queues.1.keys"])
