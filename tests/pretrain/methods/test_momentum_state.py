"""What MoCo and BYOL carry from step to step: over a stop, and over several processes."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.utils import comm
from torch import nn
from torch._dynamo.testing import CompileCounter

from common.processes import start
from pretrain.data.dataset import Batch
from pretrain.engine.trainer import Trainer
from pretrain.methods import byol, moco
from pretrain.methods.base import Method
from pretrain.models.sync_bn import synchronise_batch_norm
from tests.pretrain.golden import narrow, narrow_momentum
from tests.pretrain.golden.ours_momentum import narrow_byol, narrow_moco, trained

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

    def build(_arch: str, zero_init_residual: bool) -> tuple[nn.Module, int]:
        encoder = narrow.NarrowResNet(1, zero_init_residual)
        encoder.fc = nn.Identity()
        return encoder, narrow.WIDTH

    for module in (moco, byol):
        monkeypatch.setattr(module, "build_encoder", build)


def _final(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    state = torch.load(folder / "checkpoint_0000006.pth", weights_only=True)
    tensors = dict(state["method"])
    for number, entry in state["optimizer"]["state"].items():
        tensors[f"momentum {number}"] = entry["momentum_buffer"]
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return tensors, [{key: row[key] for key in ("iteration", "loss", "std")} for row in rows]


@pytest.mark.usefixtures("narrow_encoder")
@pytest.mark.parametrize(
    ("words", "workers"),
    [
        (MOCO, "0"),
        ([*MOCO, "MOCO.SYMMETRY", "asymmetric"], "2"),
        ([*MOCO, "SOLVER.ACCUMULATE", "2"], "0"),
        (BYOL, "0"),
        ([*BYOL, "BYOL.TARGET_START", "online", "SOLVER.ACCUMULATE", "2"], "0"),
    ],
)
def test_stopped_on_the_way_it_ends_bit_for_bit_the_same(
    pretrain: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], workers: str
) -> None:
    words = [*words, "CHECKPOINT.PERIOD", "1", "CHECKPOINT.KEEP", "9", "MONITOR.STD_ALARM", "0.0"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert pretrain(whole, *words) == 0
    step = Trainer.run_step
    for crash_at in (2, 5):  # of 6; an epoch has 3

        def crash(self: Trainer, at: int = crash_at) -> None:
            if self.iter == at:
                raise RuntimeError("the power went")
            step(self)

        monkeypatch.setattr(Trainer, "run_step", crash)
        with pytest.raises(RuntimeError):
            pretrain(broken, *words, "--resume", "DATA.WORKERS", workers)
    monkeypatch.setattr(Trainer, "run_step", step)
    assert pretrain(broken, *words, "--resume", "DATA.WORKERS", workers) == 0
    (ours, curve), (theirs, expected) = _final(broken), _final(whole)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert curve == expected and len(curve) == 6
    first = torch.load(whole / "checkpoint_0000001.pth", weights_only=True)["method"]
    for name in CARRIED[words[1]]:
        assert not torch.equal(first[name], theirs[name]), f"{name} changes on the way"


def _methods() -> dict[str, Method]:
    return {
        "moco": narrow_moco(shuffle=False),
        "moco asymmetric": narrow_moco("asymmetric", shuffle=False),
        "byol": narrow_byol(),
    }


def _batches(first: int) -> Iterator[Batch]:
    """This process's share of each step, as EpochBatches strides."""
    rank, world = comm.get_rank(), comm.get_world_size()
    for step in range(first, narrow_momentum.STEPS):
        yield Batch(tuple(view[rank::world] for view in narrow.images(step)), torch.arange(narrow.BATCH)[rank::world])


def _train_each(folder: str) -> None:
    world = comm.get_world_size()
    for name, method in _methods().items():
        if world > 1:
            method = synchronise_batch_norm(method, torch.device("cpu"))
        record = trained(method, _batches)
        state = {**method.state_dict(), "losses": torch.tensor(record.losses, dtype=torch.float64)}
        torch.save(state, f"{folder}/{name}_{world}_{comm.get_rank()}.pt")


def _in_order(queue: torch.Tensor, step: int) -> torch.Tensor:
    """The keys of each step in an order of their own: they come process by process, which no loss can tell."""
    return torch.cat([block[block[:, 0].argsort()] for block in queue.split(step)])


def test_two_processes_are_one(tmp_path: Path) -> None:
    """In float64, batch normalisation over both: sums in another order show in the last digits."""
    for count in (1, 2):
        start(_train_each, (str(tmp_path),), count)
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
def test_compiled_it_is_one_graph_and_the_same_run(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Method]) -> None:
    """What the queue and the targets keep from step to step gets through torch.compile; its code generator aside."""
    expected = trained(make()).losses
    compiler, graphs = torch.compile, CompileCounter()
    monkeypatch.setattr(torch, "compile", lambda module: compiler(module, backend=graphs))
    monkeypatch.setattr(Trainer, "__init__", functools.partialmethod(Trainer.__init__, compile_model=True))
    assert trained(make()).losses == expected and graphs.frame_count == 1


@pytest.mark.slow
def test_shuffled_between_two_processes_a_resumed_run_ends_bit_for_bit_the_same(
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
