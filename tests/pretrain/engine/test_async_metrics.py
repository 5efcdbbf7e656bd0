"""Metrics are read while the next step runs: the same run as with reading them at once, and no bad step is saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.engine.train_loop import HookBase

from pretrain.config import defaults
from pretrain.engine import build_trainer
from pretrain.engine.build_trainer import sync_iterations
from pretrain.engine.trainer import Trainer
from ssl_transfer.training.divergence import Diverged
from tests.pretrain.engine.narrow_runs import narrow_trainer

Command = Callable[..., int]


@pytest.fixture
def synchronous(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """`synchronous()`: from now on every step's metrics are read before the next step begins."""
    return lambda: monkeypatch.setattr(build_trainer, "sync_iterations", lambda *_: lambda _iteration: True)


class _Received(HookBase):
    """The iterations whose results each step receives."""

    trainer: Trainer

    def __init__(self) -> None:
        self.rows: list[list[int]] = []

    def after_step(self) -> None:
        self.rows.append([result.iteration for result in self.trainer.step_results])


def _train(trainer: Trainer, steps: int) -> _Received:
    received = _Received()
    trainer.register_hooks([received])
    trainer.train(0, steps)
    return received


def _every_fourth(iteration: int) -> bool:
    return (iteration + 1) % 4 == 0


def test_each_result_is_received_once_in_the_next_step_or_at_once() -> None:
    trainer = narrow_trainer(stop=8, sync_at=_every_fourth)
    assert _train(trainer, 8).rows == [[], [0], [1], [2, 3], [], [4], [5], [6, 7]]
    assert _train(narrow_trainer(stop=3), 3).rows == [[0], [1], [2]]


def test_weights_and_last_metrics_are_those_of_reading_at_once() -> None:
    late, soon = narrow_trainer(stop=8, sync_at=_every_fourth), narrow_trainer(stop=8)
    _train(late, 8), _train(soon, 8)
    assert late.latest == soon.latest
    mine, other = late.method.state_dict(), soon.method.state_dict()
    assert all(torch.equal(mine[name], other[name]) for name in other)


def test_logged_metrics_belong_to_their_own_step() -> None:
    trainer = narrow_trainer(stop=8, sync_at=_every_fourth)
    written: list[tuple[int, float]] = []

    class Writer(HookBase):
        def after_step(self) -> None:
            found = trainer.storage.latest()
            if "loss" in found and found["loss"][1] == trainer.iter:
                written.append((trainer.iter, found["loss"][0]))

    trainer.register_hooks([Writer()])
    trainer.train(0, 8)
    soon = narrow_trainer(stop=8)
    losses: list[float] = []
    soon.register_hooks([_Each(losses)])
    soon.train(0, 8)
    assert written == [(3, losses[3]), (7, losses[7])]


class _Each(HookBase):
    trainer: Trainer

    def __init__(self, losses: list[float]) -> None:
        self.losses = losses

    def after_step(self) -> None:
        self.losses.append(self.trainer.latest["loss"])


def _spoil(trainer: Trainer, at: int) -> None:
    weight = trainer.method.encoder.conv1.weight
    weight.register_hook(lambda grad: grad * float("nan") if trainer.iter == at else grad)


@pytest.mark.parametrize(("bad", "noticed"), [(4, 5), (3, 3), (6, 7)])
def test_a_bad_step_is_named_and_ends_the_run_before_the_next_save(bad: int, noticed: int) -> None:
    trainer = narrow_trainer(stop=8, sync_at=_every_fourth)
    _spoil(trainer, bad)
    saved: list[int] = []

    class Save(HookBase):
        def after_step(self) -> None:
            saved.extend([trainer.iter] if _every_fourth(trainer.iter) else [])

    trainer.register_hooks([Save()])
    with pytest.raises(Diverged, match=rf"norm is nan at iteration {bad}, learning rate 0.05"):
        trainer.train(0, 8)
    assert trainer.iter == noticed and all(done < bad for done in saved)


def test_a_stop_request_is_received_one_step_late_with_that_steps_own_result() -> None:
    trainer = narrow_trainer(stop=8, sync_at=_every_fourth)
    stopping: list[bool] = []

    class Ask(HookBase):
        def before_step(self) -> None:
            trainer.stop_requested = trainer.iter >= 4

        def after_step(self) -> None:
            stopping.append(trainer.stopping)
            if trainer.stopping:
                assert trainer.step_results[-1].iteration == trainer.iter  # what is saved now was checked
                raise StopIteration

    trainer.register_hooks([Ask()])
    with pytest.raises(StopIteration):
        trainer.train(0, 8)
    assert stopping == [False] * 5 + [True] and trainer.iter == 5


def test_the_iterations_read_at_once_are_those_logged_saved_and_the_last() -> None:
    cfg = defaults()
    cfg.LOG.PERIOD, cfg.CHECKPOINT.PERIOD = 4, 6

    def read_at_once() -> list[int]:
        return [done for done in range(1, 24) if sync_iterations(cfg, 10, 23)(done - 1)]

    assert read_at_once() == [4, 6, 8, 10, 12, 16, 18, 20, 23]
    cfg.CHECKPOINT.PERIOD = 0
    assert read_at_once() == [4, 8, 10, 12, 16, 20, 23]


def _curve(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "time" and not k.startswith("data_")} for row in rows]


def test_a_runs_metrics_alarm_and_checkpoint_are_those_of_reading_at_once(
    pretrain: Command, tmp_path: Path, synchronous: Callable[[], None]
) -> None:
    words = [
        "LOG.PERIOD",
        "2",
        "MONITOR.COLLAPSE.THRESHOLD",
        "0.99999",
        "MONITOR.COLLAPSE.STEPS",
        "2",
    ]  # the alarm is raised
    soon, late = tmp_path / "soon", tmp_path / "late"
    assert pretrain(late, *words) == 0
    synchronous()
    assert pretrain(soon, *words) == 0
    assert _curve(late) == _curve(soon) and _curve(late)[-1]["std_alarm"] == 1
    results = [json.loads((folder / "result.json").read_text()) for folder in (soon, late)]
    assert results[0]["final"] == results[1]["final"] and results[0]["std_alarm"] == results[1]["std_alarm"] is not None
    states = [torch.load(folder / "checkpoint_0000006.pth", weights_only=True) for folder in (soon, late)]
    assert all(torch.equal(states[0]["method"][name], states[1]["method"][name]) for name in states[0]["method"])
    assert states[0]["hooks"] == states[1]["hooks"] and states[0]["latest"] == states[1]["latest"]


def test_stopped_and_resumed_it_ends_like_the_uninterrupted_run_that_reads_at_once(
    pretrain: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synchronous: Callable[[], None]
) -> None:
    words = ["LOG.PERIOD", "100", "SOLVER.EPOCHS", "3"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    step = Trainer.run_step

    def stop_requested(self: Trainer) -> None:
        self.stop_requested = self.stop_requested or self.iter == 3  # received with step 4, where nothing else is due
        step(self)

    monkeypatch.setattr(Trainer, "run_step", stop_requested)
    assert pretrain(broken, *words) == 75
    assert (broken / "last_checkpoint").read_text() == "checkpoint_0000005.pth\n"
    monkeypatch.setattr(Trainer, "run_step", step)
    assert pretrain(broken, *words, "--resume") == 0
    synchronous()
    assert pretrain(whole, *words) == 0
    states = [torch.load(sorted(f.glob("checkpoint_*.pth"))[-1], weights_only=True) for f in (whole, broken)]
    assert states[0]["iteration"] == states[1]["iteration"] and states[0]["latest"] == states[1]["latest"]
    assert all(torch.equal(states[0]["method"][name], states[1]["method"][name]) for name in states[0]["method"])
    assert _curve(broken)[-1] == _curve(whole)[-1] and _curve(broken)[0]["iteration"] == 4  # the line of the stop


def test_the_former_key_is_refused_and_a_stored_config_with_it_resumes(
    pretrain: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert pretrain(folder) == 0
    assert pretrain(folder, "ENGINE.READ_LATE", "True") == 2
    assert "ENGINE.READ_LATE no longer exists" in capsys.readouterr().err
    stored = (folder / "config.yaml").read_text()
    assert "READ_LATE" not in stored
    (folder / "config.yaml").write_text(stored.replace("ENGINE:\n", "ENGINE:\n  READ_LATE: true\n"))
    (folder / "result.json").unlink()
    assert pretrain(folder, "--resume") == 0
    assert (folder / "result.json").exists()
