"""What MoCo and BYOL carry from step to step: over a stop, and over several processes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm
from torch._dynamo.testing import CompileCounter

from pretrain.data.dataset import Batch
from pretrain.engine.trainer import Trainer
from pretrain.methods.base import Method
from pretrain.models.batch_norm import convert_sync_batch_norm
from ssl_transfer.training.distributed import launch
from tests.pretrain.golden import narrow, narrow_momentum
from tests.pretrain.golden.ours_momentum import narrow_byol, narrow_moco, trained
from tests.pretrain.methods.stops import assert_ends_the_same, narrow_encoders

Command = Callable[..., int]

MOCO = ["METHOD", "moco", "MODEL.PREDICTOR", "none", "MODEL.SYNC_BN", "False", "MOCO.QUEUE_SIZE", "24"]
BYOL = ["METHOD", "byol", "MODEL.PROJ_LAYERS", "2", "MODEL.HEAD_BN", "hidden", "BYOL.TARGET_MOMENTUM", "0.9"]
CARRIED = {
    "moco": ("queue.keys", "queue.pointer", "target_encoder.conv1.weight", "target_projector.0.weight"),
    "byol": ("target_encoder.conv1.weight", "target_projector.0.weight", "target_encoder.bn1.running_mean"),
}


@pytest.fixture
def narrow_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every encoder is the golden values' narrow one, so that a step takes milliseconds."""
    narrow_encoders(monkeypatch)


@pytest.mark.usefixtures("narrow_encoder")
@pytest.mark.parametrize(
    ("words", "workers"),
    [
        (MOCO, "0"),
        ([*MOCO, "MOCO.SYMMETRY", "asymmetric"], "2"),
        ([*MOCO, "SOLVER.GRAD_ACCUM_STEPS", "2"], "0"),
        (BYOL, "0"),
        ([*BYOL, "BYOL.TARGET_START", "online", "SOLVER.GRAD_ACCUM_STEPS", "2"], "0"),
    ],
)
def test_interrupted_run_ends_bit_for_bit_the_same(
    pretrain: Command, tmp_path: Path, words: list[str], workers: str
) -> None:
    words = [*words, "CHECKPOINT.PERIOD", "1", "CHECKPOINT.KEEP", "9", "MONITOR.COLLAPSE.THRESHOLD", "0.0"]
    theirs = assert_ends_the_same(pretrain, tmp_path, words, (2, 5), ["DATA.WORKERS", workers])  # an epoch has 3
    first = torch.load(tmp_path / "whole" / "checkpoint_0000001.pth", weights_only=True)["method"]
    for name in CARRIED[words[1]]:
        assert not torch.equal(first[name], theirs[name]), f"{name} changes on the way"


def _methods() -> dict[str, Method]:
    return {
        "moco": narrow_moco(shuffle=False),
        "moco asymmetric": narrow_moco("asymmetric", shuffle=False),
        "byol": narrow_byol(),
    }


def _batches(first: int) -> Iterator[Batch]:
    """This process's share of each step, as ResumableBatchSampler strides."""
    rank, world = comm.get_rank(), comm.get_world_size()
    for step in range(first, narrow_momentum.STEPS):
        yield Batch(tuple(view[rank::world] for view in narrow.images(step)), torch.arange(narrow.BATCH)[rank::world])


def _train_each(folder: str) -> None:
    world = comm.get_world_size()
    for name, method in _methods().items():
        if world > 1:
            method = convert_sync_batch_norm(method, torch.device("cpu"))
        record = trained(method, _batches)
        state = {**method.state_dict(), "losses": torch.tensor(record.losses, dtype=torch.float64)}
        torch.save(state, f"{folder}/{name}_{world}_{comm.get_rank()}.pt")


def _in_order(queue: torch.Tensor, step: int) -> torch.Tensor:
    """The keys of each step in an order of their own: they come process by process, which no loss can tell."""
    return torch.cat([block[block[:, 0].argsort()] for block in queue.split(step)])


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """In float64, batch normalisation over both: sums in another order show in the last digits."""
    for count in (1, 2):
        launch(_train_each, (str(tmp_path),), count)
    for name in _methods():
        one, two, other = (torch.load(tmp_path / f"{name}_{place}.pt") for place in ("1_0", "2_0", "2_1"))
        assert one.keys() == two.keys()
        for key in one:
            assert torch.equal(two[key], other[key]), f"{name} {key} differs between the processes"
            if key == "queue.keys":
                one[key], two[key] = (
                    _in_order(state[key], narrow.BATCH * (1 + (name == "moco"))) for state in (one, two)
                )
            furthest = (two[key].double() - one[key].double()).abs().max() / one[key].double().abs().max().clamp(1e-3)
            assert furthest < 1e-9, f"{name} {key}"


@pytest.mark.parametrize("make", [narrow_moco, narrow_byol])
def test_compiled_run_is_one_graph_and_equal(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Method]) -> None:
    """What the queue and the targets keep from step to step gets through torch.compile; its code generator aside."""
    expected = trained(make()).losses
    compiler, graphs = torch.compile, CompileCounter()
    monkeypatch.setattr(torch, "compile", lambda module: compiler(module, backend=graphs))
    monkeypatch.setattr(Trainer, "__init__", functools.partialmethod(Trainer.__init__, compile_model=True))
    assert trained(make()).losses == expected and graphs.frame_count == 1


@pytest.mark.slow
def test_resumed_run_with_shuffling_between_two_processes_is_bit_for_bit_the_same(
    pretrain: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The order of a shuffle is drawn from the first process's generator, whose state the checkpoint holds."""
    words = [*MOCO, "SOLVER.BATCH_SIZE", "6", "SOLVER.EPOCHS", "3", "CHECKPOINT.PERIOD", "1", "CHECKPOINT.KEEP", "9"]
    out = tmp_path / "out"
    assert pretrain(out, *words, "--num-gpus", "2") == 0
    whole = torch.load(out / "checkpoint_0000006.pth", weights_only=True)["method"]
    for name in ("result.json", "backbone.safetensors", "backbone_target.safetensors"):
        (out / name).unlink()
    for done in (4, 5, 6):
        (out / f"checkpoint_{done:07d}.pth").unlink()
    assert pretrain(out, *words, "--num-gpus", "2", "--resume") == 0
    again = torch.load(out / "checkpoint_0000006.pth", weights_only=True)["method"]
    assert again.keys() == whole.keys() and all(torch.equal(again[name], whole[name]) for name in whole)
    plain = tmp_path / "plain"
    assert pretrain(plain, *words, "MOCO.SHUFFLE", "False", "--num-gpus", "2") == 0
    unshuffled = torch.load(plain / "checkpoint_0000006.pth", weights_only=True)["method"]
    assert not torch.equal(unshuffled["queue.keys"], whole["queue.keys"]), "shuffling is what is resumed"
    assert "Traceback" not in capfd.readouterr().err
