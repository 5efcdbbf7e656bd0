"""`--profile` on fine-tuning: what it writes, what it refuses, and that it changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_transfer import profiling
from ssl_transfer.errors import UserError
from ssl_transfer.profiling import BACKWARD, DATA, FORWARD, STEP, breakdown
from transfer.engine.trial import run_trial


@pytest.fixture(autouse=True)
def short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small trial has four steps."""
    monkeypatch.setattr(profiling, "WARM_UP", 1)


def trained(folder: Path) -> dict[str, torch.Tensor]:
    content = torch.load(next(folder.glob("model_final*")), weights_only=True)
    state: dict[str, torch.Tensor] = content["model"]
    return state


def test_a_profiled_trial_is_the_same_trial(make_request: Any, tmp_path: Path) -> None:
    without = run_trial(make_request(output=tmp_path / "without"))
    profiled = run_trial(make_request(output=tmp_path / "with", profile=2))
    first, second = trained(tmp_path / "without"), trained(tmp_path / "with")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert without.content["metrics"] == profiled.content["metrics"]
    assert not (tmp_path / "without/profile").exists()
    summary = (tmp_path / "with/profile/summary.txt").read_text()
    assert summary.startswith("profile of 2 steps, iterations 1 to 2\n") and "\npeak memory " in summary
    assert "profile of 2 steps, iterations 1 to 2" in (tmp_path / "with/log.txt").read_text()
    events = json.loads((tmp_path / "with/profile/trace.json").read_text())["traceEvents"]
    marks = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    for name in (STEP, *(f"{STEP}: {part}" for part in (DATA, FORWARD, BACKWARD))):
        assert marks.count(name) == 2, name
    found = breakdown(events)
    assert all(found.parts[name].host > 0 for name in (DATA, FORWARD, BACKWARD, "optimiser"))


def test_a_trial_too_short_to_profile_is_refused(make_request: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--profile 4 needs 5 steps, but this run makes 4 more; ask for --profile 3"):
        run_trial(make_request(profile=4))
    assert not (tmp_path / "trial").exists()


def test_evaluation_is_not_profiled(make_request: Any) -> None:
    with pytest.raises(UserError, match="--profile"):
        run_trial(make_request(profile=1, eval_only=True))


def test_a_diverged_trial_removes_the_profiler_s_marks(make_request: Any, tmp_path: Path) -> None:
    backward = torch.autograd.backward
    outcome = run_trial(make_request("SOLVER.BASE_LR", "1e30", "SOLVER.WARMUP_ITERS", "0", profile=3))
    assert outcome.status == "diverged"
    assert torch.autograd.backward is backward and not torch.autograd._profiler_enabled()
    assert not (tmp_path / "trial/profile").exists()
