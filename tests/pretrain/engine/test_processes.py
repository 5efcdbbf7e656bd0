"""Two processes with half the batch each end where one process with the whole batch ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm

from common.processes import start
from pretrain.config import defaults
from pretrain.data.dataset import Batch
from pretrain.engine.trainer import Trainer
from pretrain.models.sync_bn import synchronise_batch_norm
from pretrain.optim.sgd import build_sgd
from tests.pretrain.golden import narrow
from tests.pretrain.golden.ours import narrow_simsiam

Command = Callable[..., int]


def _weights(folder: Path, iterations: int) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / f"checkpoint_{iterations:07d}.pth", weights_only=True)[
        "method"
    ]
    return state


def _furthest(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Largest difference of two tensors of the same name, relative to the tensor's largest entry."""
    assert ours.keys() == theirs.keys()
    return max(
        float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max().clamp(min=1e-3))
        for name in ours
        if theirs[name].is_floating_point()
    )


def _apart(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Euclidean distance of all parameters and statistics together, relative to their length."""
    names = [name for name in theirs if theirs[name].is_floating_point()]
    mine, other = (torch.cat([tensors[name].flatten() for name in names]) for tensors in (ours, theirs))
    return float((mine - other).norm() / other.norm())


def test_two_processes_of_7_are_one_of_14(pretrain: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["SOLVER.BATCH_SIZE", "14", "SOLVER.BASE_LR", "0.5", "SOLVER.EPOCHS", "2"]
    assert pretrain(tmp_path / "one", *words) == 0
    assert pretrain(tmp_path / "two", *words, "--num-gpus", "2") == 0
    assert "finished" in capfd.readouterr().out
    # Float32: sums in another order differ by about 1e-7, which each step of training multiplies; see the next test.
    assert _apart(_weights(tmp_path / "two", 2), _weights(tmp_path / "one", 2)) < 1e-3
    rows = [(tmp_path / name / "metrics.json").read_text().splitlines() for name in ("one", "two")]
    for one, two in zip(*rows, strict=True):
        for key in ("loss", "std"):
            assert json.loads(two)[key] == pytest.approx(json.loads(one)[key], rel=1e-4)


def _train_narrow(folder: str) -> None:
    """SimSiam in float64 on the golden model: 12 steps of 8 images over the processes there are."""
    rank, world = comm.get_rank(), comm.get_world_size()
    method = narrow_simsiam()
    if world > 1:
        method = synchronise_batch_norm(method, torch.device("cpu"))
    views = (narrow.images(step) for step in range(12))
    batches = (
        Batch((first[rank::world], second[rank::world]), torch.arange(rank, 8, world)) for first, second in views
    )
    cfg = defaults()
    cfg.SOLVER.BASE_LR = 0.05
    trainer = Trainer(method, build_sgd(method, cfg), batches)
    trainer.train(0, 12)
    if rank == 0:
        torch.save(
            {**method.state_dict(), "latest": torch.tensor(list(trainer.latest.values()))}, f"{folder}/{world}.pt"
        )


def test_in_double_precision_two_processes_are_one(tmp_path: Path) -> None:
    for count in (1, 2):
        start(_train_narrow, (str(tmp_path),), count)
    one, two = (torch.load(tmp_path / f"{count}.pt") for count in (1, 2))
    assert _furthest(two, one) < 1e-9


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_refused(
    pretrain: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(tmp_path / "out", "SOLVER.BATCH_SIZE", "5", "--num-gpus", "2") == 2
    errors = capfd.readouterr().err
    assert "which 2 processes cannot share equally" in errors and "Traceback" not in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_signal_to_the_parent_stops_both_and_the_rest_follows_exactly(
    pretrain: Command, config: Path, images: Path, tmp_path: Path, root: Path
) -> None:
    words = ["SOLVER.BATCH_SIZE", "6", "SOLVER.BASE_LR", "0.5", "SOLVER.EPOCHS", "10"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert pretrain(whole, *words, "--num-gpus", "2") == 0
    command = [sys.executable, "tools/pretrain.py", "--config-file", str(config), "--output", str(broken), "--resume"]
    command += ["--num-gpus", "2", "DATA.ROOT", str(images), *words]
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True)
    begun = time.monotonic()
    while not _lines(broken / "metrics.json") and process.poll() is None and time.monotonic() - begun < 120:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 75, errors
    assert "stopped: saved after" in errors and "Traceback" not in errors
    stopped = int((broken / "last_checkpoint").read_text()[11:18])
    assert 0 < stopped < 20
    assert pretrain(broken, *words, "--num-gpus", "2", "--resume") == 0
    ours, unbroken = _weights(broken, 20), _weights(whole, 20)
    assert all(torch.equal(ours[name], unbroken[name]) for name in ours)


def _lines(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.exists() else 0
