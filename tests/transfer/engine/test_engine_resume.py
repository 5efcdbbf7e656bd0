"""A trial that is broken off and taken up again ends bit for bit as the unbroken one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import Again
from common.files import read_json
from transfer.engine.hooks import Stopwatch
from transfer.engine.prepare import Request
from transfer.engine.trial import run

Ask = Callable[..., Request]
# Precise BN and an evaluation in the middle draw random numbers too; masks make the sampler draw more.
WORDS = ("SOLVER.MAX_ITER", "6", "SOLVER.CHECKPOINT_PERIOD", "2", "TEST.EVAL_PERIOD", "2", "SOLVER.STEPS", "[4]")


def final(folder: Path) -> dict[str, Any]:
    return dict(torch.load(folder / "model_final.pth", weights_only=True)["model"])


def assert_same_end(one: Path, other: Path) -> None:
    a, b = final(one), final(other)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert read_json(one / "result.json")["metrics"] == read_json(other / "result.json")["metrics"]


def iterations(folder: Path) -> list[int]:
    return [json.loads(line)["iteration"] for line in (folder / "metrics.json").read_text().splitlines()]


@pytest.fixture
def unbroken(ask: Ask, tmp_path: Path) -> Path:
    request = ask(*WORDS, task="coco", output=tmp_path / "unbroken")
    run(request)
    return request.output


@pytest.mark.parametrize("breaks_at", [0, 2, 3, 5])
def test_broken_off_at_any_step_it_ends_the_same(
    ask: Ask, unbroken: Path, monkeypatch: pytest.MonkeyPatch, breaks_at: int
) -> None:
    request = ask(*WORDS, task="coco")

    def power_cut(self: Stopwatch) -> None:
        if self.trainer.iter == breaks_at:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(Stopwatch, "before_step", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            run(request)
    assert run(replace(request, resume=True)).status == "done"
    assert_same_end(unbroken, request.output)
    logged = iterations(request.output)
    assert len(logged) == len(set(logged)) and max(logged) == max(iterations(unbroken))  # none is logged twice


def test_two_runs_of_one_seed_are_the_same_and_of_two_seeds_are_not(ask: Ask, unbroken: Path, tmp_path: Path) -> None:
    again = ask(*WORDS, "DATALOADER.NUM_WORKERS", "2", task="coco", output=tmp_path / "again")
    run(again)  # with two workers instead of none
    assert_same_end(unbroken, again.output)
    other = ask(*WORDS, task="coco", output=tmp_path / "other", seed=2)
    run(other)
    assert not all(torch.equal(value, final(other.output)[name]) for name, value in final(unbroken).items())


def test_sigterm_stops_after_a_checkpoint_and_resume_goes_on(
    ask: Ask, unbroken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ask(*WORDS, "SOLVER.CHECKPOINT_PERIOD", "100", task="coco")

    def preempted(self: Stopwatch) -> None:
        if self.trainer.iter == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(Stopwatch, "before_step", preempted)
        with pytest.raises(Again):
            run(request)
    assert signal.getsignal(signal.SIGTERM) is before
    assert (request.output / "last_checkpoint").read_text() == "model_0000002.pth"
    run(replace(request, resume=True))
    assert_same_end(unbroken, request.output)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["voc07", "coco"])
def test_killed_with_minus_9_and_resumed_it_ends_bit_for_bit_the_same(
    ask: Ask, root: Path, tmp_path: Path, task: str
) -> None:
    words = ("SOLVER.MAX_ITER", "30", "SOLVER.CHECKPOINT_PERIOD", "3", "SOLVER.STEPS", "[20]")
    whole, broken = (ask(*words, task=task, output=tmp_path / name) for name in ("whole", "broken"))
    run(whole)
    kills = 0
    for wait in ("model_0000005.pth", "model_0000014.pth", "model_0000023.pth"):
        kills += start_and_kill(root, broken, wait)
    assert kills == 3
    assert subprocess.run(command(root, broken), cwd=root, capture_output=True, check=False).returncode == 0
    assert_same_end(whole.output, broken.output)
    assert not list(broken.output.glob(".*.tmp")) or kills  # a torn temporary file is never taken for a checkpoint


def command(root: Path, request: Request) -> list[str]:
    words = [
        "--config-file",
        str(request.source.file),
        "--overlay",
        str(request.source.overlay),
        "--weights",
        "scratch",
    ]
    words += ["--seed", "1", "--output", str(request.output), "--resume"]
    return [sys.executable, str(root / "tools/transfer.py"), *words, *request.source.overrides]


def start_and_kill(root: Path, request: Request, wait_for: str) -> bool:
    """Start the trial, kill it once a checkpoint (or a later one) is there; whether it was still running."""
    process = subprocess.Popen(command(root, request), cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(file.name >= wait_for for file in request.output.glob("model_0*.pth")):
            break
        time.sleep(0.02)
    alive = process.poll() is None
    process.kill()
    process.wait()
    return alive
