"""A run that was stopped or killed and resumed ends bit for bit like an uninterrupted one."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.engine.resume import PeriodicCheckpoint
from pretrain.engine.trainer import Trainer
from ssl_transfer.training import checkpoint
from ssl_transfer.training.logs import truncate_metrics

Command = Callable[..., int]


def _state(folder: Path) -> dict[str, torch.Tensor]:
    state = torch.load(sorted(folder.glob("checkpoint_*.pth"))[-1], weights_only=True)
    tensors = dict(state["method"])
    for number, entry in state["optimizer"]["state"].items():
        tensors[f"momentum {number}"] = entry["momentum_buffer"]
    return tensors


def _assert_same_end(ours: Path, theirs: Path) -> None:
    assert (ours / "backbone.safetensors").read_bytes() == (theirs / "backbone.safetensors").read_bytes()
    mine, other = _state(ours), _state(theirs)
    assert mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)
    curves = []
    for folder in (ours, theirs):
        rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
        curves.append([{k: v for k, v in row.items() if k != "time" and not k.startswith("data_")} for row in rows])
    assert curves[0] == curves[1]
    finals = [json.loads((folder / "result.json").read_text())["final"] for folder in (ours, theirs)]
    assert finals[0] == finals[1]


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, signal.Signals], None]:
    """`signalled(iteration, number)`: the process sends itself a signal while it computes that iteration, once."""
    step = Trainer.run_step

    def arm(iteration: int, number: signal.Signals) -> None:
        waiting = [iteration]

        def run_step(self: Trainer) -> None:
            if waiting and self.iter == waiting[0]:
                waiting.pop()
                os.kill(os.getpid(), number)
            step(self)

        monkeypatch.setattr(Trainer, "run_step", run_step)

    return arm


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_signal_saves_mid_epoch_and_the_rest_follows_exactly(
    pretrain: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    signalled: Callable[[int, signal.Signals], None],
    workers: str,
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert pretrain(whole) == 0
    capsys.readouterr()
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)]
    for iteration, number in ((1, signal.SIGTERM), (3, signal.SIGUSR2)):
        signalled(iteration, number)
        assert pretrain(broken, "--resume", "DATA.WORKERS", workers) == 75
        errors = capsys.readouterr().err
        assert f"saved after {iteration + 1} of 6 iterations" in errors and "Traceback" not in errors
        assert (broken / "last_checkpoint").read_text() == f"checkpoint_{iteration + 1:07d}.pth\n"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)] == handlers
    assert pretrain(broken, "--resume", "DATA.WORKERS", workers) == 0
    # config.yaml is the one the run began with, so even the backbone's record of it is equal only for equal workers.
    if workers == "0":
        _assert_same_end(broken, whole)
    else:
        mine, other = _state(broken), _state(whole)
        assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_iterations_after_the_checkpoint_are_repeated_and_logged_once(
    pretrain: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert pretrain(whole) == 0
    step = Trainer.run_step

    def crash(self: Trainer) -> None:
        if self.iter == 5:
            raise RuntimeError("the power went")
        step(self)

    monkeypatch.setattr(Trainer, "run_step", crash)
    with pytest.raises(RuntimeError):
        pretrain(broken)
    with open(broken / "metrics.json", "a") as file:
        file.write('{"iteration": 5, "lo')  # a line cut short
    (broken / ".checkpoint_0000006.pth.abcd.tmp").write_bytes(b"half")
    (broken / ".notes.tmp").write_text("the user's")
    monkeypatch.setattr(Trainer, "run_step", step)
    assert pretrain(broken, "--resume") == 0
    _assert_same_end(broken, whole)
    assert not (broken / ".checkpoint_0000006.pth.abcd.tmp").exists() and (broken / ".notes.tmp").exists()


class _Killed(BaseException):
    """Not caught by any `except Exception`."""


def _half_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL in the middle of the file: its first half lies there under the temporary name."""
    save = torch.save

    def half(state: Any, stream: Any) -> None:
        whole = io.BytesIO()
        save(state, whole)
        stream.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        stream.flush()
        monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # a killed process tidies nothing
        raise _Killed

    monkeypatch.setattr(torch, "save", half)


def _before_last_checkpoint_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise _Killed

    monkeypatch.setattr(checkpoint, "write_text", killed)


def _before_old_ones_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise _Killed

    monkeypatch.setattr(PeriodicCheckpoint, "_prune", killed)


def test_killed_while_a_checkpoint_is_written(pretrain: Command, tmp_path: Path) -> None:
    words = ["CHECKPOINT.PERIOD", "1", "CHECKPOINT.KEEP", "1"]
    assert pretrain(tmp_path / "whole", *words) == 0
    for moment in (_half_written, _before_last_checkpoint_is_named, _before_old_ones_are_removed):
        broken = tmp_path / moment.__name__
        _run_until(moment, lambda broken=broken: pretrain(broken, *words))  # type: ignore[misc]
        assert bool(list(broken.glob(".checkpoint_0000005.pth.*.tmp"))) == (moment is _half_written)
        assert (broken / "checkpoint_0000005.pth").exists() == (moment is not _half_written)
        assert pretrain(broken, *words, "--resume") == 0
        _assert_same_end(broken, tmp_path / "whole")
        assert [path.name for path in broken.glob("*checkpoint*.pth*")] == ["checkpoint_0000006.pth"]
        assert not list(broken.glob(".*.tmp"))


def _run_until(moment: Callable[[pytest.MonkeyPatch], None], run: Callable[[], int]) -> None:
    """Run, and be killed at that moment of the checkpoint after iteration 4."""
    step = Trainer.run_step
    with pytest.MonkeyPatch.context() as patch:

        def armed(self: Trainer) -> None:
            if self.iter == 4:
                moment(patch)
            step(self)

        patch.setattr(Trainer, "run_step", armed)
        with pytest.raises(_Killed):
            run()


def test_truncation_keeps_the_lines_before_the_resumed_iteration(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    lines = [json.dumps({"iteration": i}) + "\n" for i in (0, 1, 2, 3)]
    file.write_text("".join(lines) + "[1]\n{broken")
    truncate_metrics(file, 2)
    assert file.read_text() == "".join(lines[:2])
    truncate_metrics(tmp_path / "missing.json", 2)
    assert not (tmp_path / "missing.json").exists()


def test_a_signal_at_the_last_step_lets_the_run_finish(
    pretrain: Command, tmp_path: Path, signalled: Callable[[int, signal.Signals], None]
) -> None:
    signalled(5, signal.SIGTERM)
    assert pretrain(tmp_path / "out") == 0
    assert (tmp_path / "out" / "result.json").exists()


def test_no_loader_process_outlives_a_stopped_run(
    pretrain: Command, tmp_path: Path, signalled: Callable[[int, signal.Signals], None]
) -> None:
    signalled(1, signal.SIGTERM)
    assert pretrain(tmp_path / "out", "DATA.WORKERS", "2") == 75
    assert not multiprocessing.active_children()


def _start(command: list[str], root: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, cwd=root, start_new_session=True, stderr=subprocess.DEVNULL)


def _await(process: subprocess.Popen[bytes], happened: Callable[[], bool]) -> None:
    """Wait until `happened()` or the process ends, at most two minutes."""
    begun = time.monotonic()
    while not happened() and process.poll() is None and time.monotonic() - begun < 120:
        time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_killed_five_times_at_random_moments(
    pretrain: Command, config: Path, images: Path, tmp_path: Path, root: Path, workers: str
) -> None:
    """SIGKILL to the whole process group: three times anywhere, twice while a checkpoint is being written."""
    words = ["DATA.WORKERS", workers, "CHECKPOINT.PERIOD", "1", "SOLVER.EPOCHS", "20"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert pretrain(whole, *words) == 0
    command = [sys.executable, "tools/pretrain.py", "--config-file", str(config), "--resume", "--output", str(broken)]
    command += ["DATA.ROOT", str(images), *words]
    rng, inside = random.Random(int(workers)), 0

    def progress() -> str:
        return (broken / "last_checkpoint").read_text() if (broken / "last_checkpoint").exists() else ""

    for kill in range(5):
        before = progress()
        process = _start(command, root)
        if kill == 0:
            time.sleep(rng.uniform(0.0, 3.0))  # while it starts
        elif kill % 2:
            _await(process, lambda before=before: progress() != before)  # type: ignore[misc]
            time.sleep(rng.uniform(0.0, 0.7))
        else:
            _await(process, lambda before=before: progress() != before)  # type: ignore[misc]
            _await(process, lambda: bool(list(broken.glob(".checkpoint_*.tmp"))))
        assert process.poll() is None, "it ended before it was killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        inside += bool(list(broken.glob(".checkpoint_*.tmp")))
    assert inside >= 1  # a rename may win the race against one of the two
    assert subprocess.run(command, cwd=root, stderr=subprocess.DEVNULL, check=False).returncode == 0
    _assert_same_end(broken, whole)
    assert not list(broken.glob(".*.tmp"))
