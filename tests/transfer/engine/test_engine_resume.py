"""A trial that is broken off and taken up again ends bit for bit as the unbroken one."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssl_transfer.errors import Preempted
from tests.transfer.engine.broken_off import assert_same_end, final, iterations
from transfer.engine.prepare import TrialRequest
from transfer.engine.trial import run_trial
from transfer.engine.trial_hooks import Stopwatch

RequestFactory = Callable[..., TrialRequest]
# Precise BN and an evaluation in the middle draw random numbers too; masks make the sampler draw more.
WORDS = ("SOLVER.MAX_ITER", "6", "SOLVER.CHECKPOINT_PERIOD", "2", "TEST.EVAL_PERIOD", "2", "SOLVER.STEPS", "[4]")


@pytest.fixture
def unbroken(make_request: RequestFactory, tmp_path: Path) -> Path:
    request = make_request(*WORDS, task="coco", output=tmp_path / "unbroken")
    run_trial(request)
    return request.output


@pytest.mark.parametrize("breaks_at", [0, 2, 3, 5])
def test_interrupted_at_any_step_it_resumes_to_the_same_end(
    make_request: RequestFactory, unbroken: Path, monkeypatch: pytest.MonkeyPatch, breaks_at: int
) -> None:
    request = make_request(*WORDS, task="coco")

    def power_cut(self: Stopwatch) -> None:
        if self.trainer.iter == breaks_at:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(Stopwatch, "before_step", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            run_trial(request)
    assert run_trial(replace(request, resume=True)).status == "done"
    assert_same_end(unbroken, request.output)
    logged = iterations(request.output)
    assert len(logged) == len(set(logged)) and max(logged) == max(iterations(unbroken))  # none is logged twice


def test_runs_are_equal_for_one_seed_and_differ_for_two(
    make_request: RequestFactory, unbroken: Path, tmp_path: Path
) -> None:
    again = make_request(*WORDS, "DATALOADER.NUM_WORKERS", "2", task="coco", output=tmp_path / "again")
    run_trial(again)  # with two workers instead of none
    assert_same_end(unbroken, again.output)
    other = make_request(*WORDS, task="coco", output=tmp_path / "other", seed=2)
    run_trial(other)
    assert not all(torch.equal(value, final(other.output)[name]) for name, value in final(unbroken).items())


def test_separable_roi_align_resumes_to_the_same_end(
    make_request: RequestFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = (*WORDS, "TRANSFER.ROI_ALIGN", "separable", "TRANSFER.CHANNELS_LAST", "True")
    whole = make_request(*words, task="coco", output=tmp_path / "whole")
    run_trial(whole)
    request = make_request(*words, task="coco")

    def power_cut(self: Stopwatch) -> None:
        if self.trainer.iter == 3:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(Stopwatch, "before_step", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            run_trial(request)
    assert run_trial(replace(request, resume=True)).status == "done"
    assert_same_end(whole.output, request.output)


def test_a_signal_to_the_group_does_not_end_the_loader_workers(
    make_request: RequestFactory, unbroken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = make_request(*WORDS, "SOLVER.CHECKPOINT_PERIOD", "100", "DATALOADER.NUM_WORKERS", "2", task="coco")

    def preempted(self: Stopwatch) -> None:
        if self.trainer.iter == 2:
            for process in [*multiprocessing.active_children(), multiprocessing.current_process()]:
                os.kill(process.pid or 0, signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Stopwatch, "before_step", preempted)
        with pytest.raises(Preempted):
            run_trial(request)
    assert not multiprocessing.active_children()
    run_trial(replace(request, resume=True))
    assert_same_end(unbroken, request.output)


def test_sigterm_stops_after_a_checkpoint_and_resume_continues(
    make_request: RequestFactory, unbroken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = make_request(*WORDS, "SOLVER.CHECKPOINT_PERIOD", "100", task="coco")

    def preempted(self: Stopwatch) -> None:
        if self.trainer.iter == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(Stopwatch, "before_step", preempted)
        with pytest.raises(Preempted):
            run_trial(request)
    assert signal.getsignal(signal.SIGTERM) is before
    assert (request.output / "last_checkpoint").read_text().strip() == "model_0000002.pth"
    torn = request.output / ".model_0000003.pth.0a1b2c3d.tmp"
    torn.write_bytes(b"half of it")
    run_trial(replace(request, resume=True))
    assert not torn.exists()
    assert_same_end(unbroken, request.output)
