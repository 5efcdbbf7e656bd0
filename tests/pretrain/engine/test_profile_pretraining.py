"""`--profile` on pre-training: what it writes, what it refuses, and that it changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pretrain.engine.trainer import Trainer
from ssl_transfer import profiling
from ssl_transfer.profiling import BACKWARD, DATA, FORWARD, STEP, breakdown

Command = Callable[..., int]


@pytest.fixture(autouse=True)
def short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small run has six steps."""
    monkeypatch.setattr(profiling, "WARM_UP", 2)


def weights(folder: Path) -> bytes:
    return (folder / "backbone.safetensors").read_bytes()


def rows(folder: Path) -> list[dict[str, float]]:
    """The metrics without times."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "time" not in name} for line in lines]


def test_a_profiled_run_is_the_same_run(pretrain: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain(tmp_path / "without") == 0
    assert pretrain(tmp_path / "with", "--profile", "3") == 0
    assert weights(tmp_path / "with") == weights(tmp_path / "without")
    assert rows(tmp_path / "with") == rows(tmp_path / "without")
    assert not (tmp_path / "without/profile").exists()
    summary = (tmp_path / "with/profile/summary.txt").read_text()
    assert summary.startswith("profile of 3 steps, iterations 2 to 4\n")
    for line in ("data", "forward", "backward", "optimiser", "communication", "step", "peak memory"):
        assert f"\n{line}" in summary
    assert summary.splitlines()[0] in capsys.readouterr().err
    assert summary.splitlines()[0] in (tmp_path / "with/log.txt").read_text()


def test_the_trace_is_a_chrome_trace_of_those_steps(pretrain: Command, tmp_path: Path) -> None:
    assert pretrain(tmp_path, "--profile", "2", "SOLVER.GRAD_ACCUM_STEPS", "2") == 0
    assert [file.name for file in sorted((tmp_path / "profile").iterdir())] == ["summary.txt", "trace.json"]
    events = json.loads((tmp_path / "profile/trace.json").read_text())["traceEvents"]
    marks = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert marks.count(STEP) == marks.count(f"{STEP}: {DATA}") == 2
    assert marks.count(f"{STEP}: {FORWARD}") == marks.count(f"{STEP}: {BACKWARD}") == 4  # two parts a step
    found = breakdown(events)
    assert all(found.parts[name].host > 0 for name in (DATA, FORWARD, BACKWARD, "optimiser"))
    assert sum(part.host for part in found.parts.values()) == pytest.approx(found.step.host)


def test_too_short_a_run_is_refused_before_anything_is_written(
    pretrain: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(tmp_path / "run", "--profile", "5") == 2
    assert (
        "--profile 5 needs 7 steps, but this run makes 6 more; ask for --profile 4 at most" in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["0", "-1", "two", "SOLVER.EPOCHS"])
def test_an_invalid_number_of_steps_is_refused(
    pretrain: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    assert pretrain(tmp_path / "run", f"--profile={text}") == 2
    assert f"{text!r} is no number of steps; write --profile 10" in capsys.readouterr().err


def test_an_interrupted_run_leaves_no_profile_and_no_marks(
    pretrain: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backward, step = torch.autograd.backward, Trainer.run_step

    def run_step(trainer: Trainer) -> None:
        step(trainer)
        if trainer.iter == 3:
            trainer.diverge("for show")

    monkeypatch.setattr(Trainer, "run_step", run_step)
    assert pretrain(tmp_path, "--profile", "3") == 1
    assert not (tmp_path / "profile").exists()
    assert torch.autograd.backward is backward
    assert not torch.autograd._profiler_enabled()
