"""The collapse detector: when it raises the alarm, what it records, and that a resumed run continues to count."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from pretrain.config import defaults
from pretrain.engine.metrics import StepResult, embedding_moments, embedding_std
from pretrain.engine.step_hooks import CollapseDetector, lowest_std_share
from pretrain.engine.trainer import Trainer

Command = Callable[..., int]
LOUD = ["MONITOR.COLLAPSE.THRESHOLD", "0.99999", "MONITOR.COLLAPSE.STEPS", "2", "LOG.PERIOD", "1"]
"""With these every std but 1/√d itself is too low."""


class _Trainer:
    """The part of a trainer that the detector reads."""

    def __init__(self) -> None:
        self.iter, self.step_results, self.raised = 0, list[StepResult](), list[float]()
        self.storage = SimpleNamespace(put_scalar=lambda name, value, smoothing_hint: self.raised.append(value))

    def diverge(self, what: str, result: StepResult) -> None:
        raise RuntimeError(what)


def _alarm(lowest: float = 0.0, **keys: Any) -> tuple[CollapseDetector, _Trainer]:
    collapse = defaults().MONITOR.COLLAPSE
    collapse.update(keys)
    alarm, trainer = CollapseDetector(4, collapse, lowest), _Trainer()
    alarm.trainer = trainer  # type: ignore[assignment]
    return alarm, trainer


def _feed(alarm: CollapseDetector, trainer: _Trainer, values: list[float]) -> list[float]:
    trainer.raised.clear()
    for value in values:
        trainer.step_results = [StepResult(trainer.iter, (), {"std": value}, 0.0, False)]
        alarm.after_step()
        trainer.iter += 1
    return trainer.raised


def test_alarm_below_a_tenth_of_one_over_root_d_for_n_steps(caplog: pytest.LogCaptureFixture) -> None:
    alarm, trainer = _alarm(STEPS=3)  # 1/√4 is 0.5
    assert _feed(alarm, trainer, [0.049, 0.049, 0.051, 0.049, 0.04]) == [0, 0, 0, 0, 0]
    assert alarm.record is None and not caplog.records
    assert _feed(alarm, trainer, [0.03, 0.01, 0.02, 0.2, 0.04, 0.04, 0.005]) == [1, 1, 1, 0, 0, 0, 1]
    assert alarm.record == {"iteration": 5, "std": 0.03, "lowest": 0.005}
    assert len(caplog.records) == 2 and "below 0.1 of 1/√4 for 3 steps at iteration 5" in caplog.records[0].message


def test_the_threshold_is_higher_if_an_output_bn_bounds_std_from_below() -> None:
    alarm, trainer = _alarm(0.2, STEPS=1)  # a tenth of the way from 0.2 to 1: 0.28 of 0.5
    assert _feed(alarm, trainer, [0.141, 0.139]) == [0, 1]


def test_zero_turns_it_off_and_stop_ends_the_run() -> None:
    alarm, trainer = _alarm(0.2, THRESHOLD=0.0, STEPS=1)
    assert _feed(alarm, trainer, [0.0, 0.0]) == [0, 0]
    alarm, trainer = _alarm(STEPS=2, STOP=True)
    with pytest.raises(RuntimeError, match="for 2 steps"):
        _feed(alarm, trainer, [0.0, 0.0])


def test_the_lowest_std_is_that_of_all_samples_but_one_coinciding() -> None:
    for images in (2, 16, 256):
        method = SimpleNamespace(projector=nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8, affine=False, eps=1e-12)))
        x = torch.zeros(images, 5)
        x[3 % images] = 1
        measured = embedding_std(embedding_moments(method.projector(x).detach())) * 8**0.5
        assert lowest_std_share(method, images) == pytest.approx(measured, rel=1e-4)  # type: ignore[arg-type]
    method.projector[1] = nn.Identity()
    assert lowest_std_share(method, 16) == 0 == lowest_std_share(SimpleNamespace(), 16)  # type: ignore[arg-type]


def test_is_in_the_metrics_the_log_and_the_result(pretrain: Command, tmp_path: Path) -> None:
    loud, quiet = tmp_path / "loud", tmp_path / "quiet"
    assert pretrain(loud, *LOUD) == 0 and pretrain(quiet, "MONITOR.COLLAPSE.STEPS", "1") == 0
    rows = [json.loads(line) for line in (loud / "metrics.json").read_text().splitlines()]
    assert [row["std_alarm"] for row in rows] == [0, 1, 1, 1, 1, 1]
    record = json.loads((loud / "result.json").read_text())["std_alarm"]
    assert record == {"iteration": 1, "std": rows[1]["std"], "lowest": min(row["std"] for row in rows[1:])}
    assert (loud / "log.txt").read_text().count("collapse?") == 1
    assert json.loads((quiet / "result.json").read_text())["std_alarm"] is None
    assert "collapse?" not in (quiet / "log.txt").read_text()


def test_a_resumed_run_continues_to_count(pretrain: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*LOUD[:2], "MONITOR.COLLAPSE.STEPS", "5"]
    step = Trainer.run_step

    def crash(self: Trainer) -> None:
        if self.iter == 4:
            raise RuntimeError("the power went")
        step(self)

    monkeypatch.setattr(Trainer, "run_step", crash)
    with pytest.raises(RuntimeError):
        pretrain(tmp_path / "out", *words)
    monkeypatch.setattr(Trainer, "run_step", step)
    assert pretrain(tmp_path / "out", *words, "--resume") == 0  # from iteration 3 on
    assert json.loads((tmp_path / "out" / "result.json").read_text())["std_alarm"]["iteration"] == 4


def test_stop_keeps_the_checkpoint_before_and_resume_without_it_continues(
    pretrain: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, words = tmp_path / "out", [*LOUD[:2], "MONITOR.COLLAPSE.STEPS", "6", "MONITOR.COLLAPSE.STOP"]
    assert pretrain(out, *words, "True") == 1
    said = capsys.readouterr().err
    assert "diverged: std, " in said and "for 6 steps at iteration 5, learning rate 0.025, 0.05" in said
    assert (out / "last_checkpoint").read_text() == "checkpoint_0000003.pth\n"
    assert "std, " in json.loads((out / "divergence.json").read_text())["what"]
    assert pretrain(out, *words, "False", "--resume") == 0
    assert json.loads((out / "result.json").read_text())["std_alarm"]["iteration"] == 5
