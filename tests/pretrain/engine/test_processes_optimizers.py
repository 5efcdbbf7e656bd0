"""Two processes of 8 are one of 16 in float64, across a stop, with LARS, with LARC, and with labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from torch import nn

from pretrain.config import defaults
from pretrain.data.dataset import Batch
from pretrain.engine.resume import PeriodicCheckpoint, load_latest, restore
from pretrain.engine.step_hooks import LearningRates
from pretrain.engine.trainer import Trainer
from pretrain.methods.base import Method, TrainingInfo
from pretrain.methods.supervised import Supervised
from pretrain.models.batch_norm import convert_sync_batch_norm
from pretrain.optim.optimizer import build_optimizer
from pretrain.optim.schedule import build_schedule
from ssl_transfer.training.distributed import launch
from tests.pretrain.engine.narrow_runs import apart, batches
from tests.pretrain.golden import narrow
from tests.pretrain.golden.ours import narrow_simsiam

CLASSES, STEPS_PER_EPOCH, TOTAL = 6, 4, 12
RUNS: dict[str, dict[str, Any]] = {
    "lars": {"OPTIMIZER": "lars", "BASE_LR": 200.0, "WARMUP_EPOCHS": 1, "WARMUP_ENDS": "first"},
    "larc": {"OPTIMIZER": "larc", "BASE_LR": 200.0, "FINAL_LR": 0.1, "WARMUP_EPOCHS": 1, "WARMUP_ENDS": "both"},
    "supervised": {"BASE_LR": 3.2, "SCHEDULE": "steps", "STEPS": (1, 2)},
}
"""SOLVER keys of each run."""


def _supervised() -> Supervised:
    encoder = narrow.NarrowResNet(narrow.DIM, zero_init_residual=True)
    encoder.fc = nn.Identity()
    torch.manual_seed(0)
    method = Supervised(encoder, narrow.WIDTH).double()
    narrow.fill(method)
    method.prepare(TrainingInfo(16, STEPS_PER_EPOCH, TOTAL, lambda _: iter(()), CLASSES))
    return method


def _labelled(first: int, last: int) -> Iterator[Batch]:
    for batch in batches(first, last):
        yield batch._replace(views=batch.views[:1], labels=batch.indices * 5 % CLASSES)


def _trainer(name: str, first: int = 0, last: int = TOTAL) -> Trainer:
    method: Method = _supervised() if name == "supervised" else narrow_simsiam()
    if comm.get_world_size() > 1:
        method = convert_sync_batch_norm(method, torch.device("cpu"))
    cfg = defaults()
    cfg.SOLVER.update(SCHEDULE="cosine_by_step", BATCH_SIZE=16, EPOCHS=TOTAL // STEPS_PER_EPOCH)
    cfg.SOLVER.update(RUNS[name])
    made: Callable[[int, int], Iterator[Batch]] = _labelled if name == "supervised" else batches
    trainer = Trainer(method, build_optimizer(method, cfg), made(first, last))
    trainer.register_hooks([LearningRates(build_schedule(cfg, STEPS_PER_EPOCH))])
    return trainer


def _end(trainer: Trainer, first: int, last: int) -> dict[str, torch.Tensor]:
    trainer.train(first, last)
    latest = {name: torch.tensor(value, dtype=torch.float64) for name, value in trainer.latest.items()}
    return {**trainer.method.state_dict(), **latest}


def _train(folder: str) -> None:
    ends = {}
    for name in RUNS:
        ends[name] = _end(_trainer(name), 0, TOTAL)
        at = Path(folder) / f"{name}{comm.get_world_size()}"
        at.mkdir(exist_ok=True)
        half = _trainer(name, last=5)
        half.register_hooks([PeriodicCheckpoint(at, 5, defaults().CHECKPOINT, extra={})])
        _end(half, 0, 5)
        state = load_latest(at)
        assert state is not None
        rest = _trainer(name, first=5)
        restore(rest, state)
        ends[f"{name} resumed"] = _end(rest, 5, TOTAL)
        ends[f"{name} start"] = _trainer(name).method.state_dict()
    if comm.is_main_process():
        torch.save(ends, f"{folder}/{comm.get_world_size()}.pt")


def test_two_processes_are_one_and_a_resumed_run_is_a_whole_one(tmp_path: Path) -> None:
    for count in (1, 2):
        launch(_train, (str(tmp_path),), count)
    one, two = (torch.load(tmp_path / f"{count}.pt") for count in (1, 2))
    for name in RUNS:
        assert apart(two[name], one[name]) < 1e-9
        for run in (one, two):
            whole, resumed = run[name], run[f"{name} resumed"]
            assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)
        begun = {key: one[name][key] for key in one[f"{name} start"]}
        assert apart(begun, one[f"{name} start"]) > 0.1  # it has gone somewhere
    assert {"train_top1", "train_top5"} < one["supervised"].keys()
    assert apart({k: one["lars"][k] for k in one["larc"]}, one["larc"]) > 1e-3
