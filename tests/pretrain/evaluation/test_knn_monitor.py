"""The kNN monitor: what it writes, and that it does not affect the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pretrain.engine import monitors as monitor
from pretrain.evaluation.backbone_features import frozen

Command = Callable[..., int]


@pytest.fixture
def words(labelled: Path) -> list[str]:
    """The monitor's keys."""
    return [
        "MONITOR.KNN.PERIOD",
        "1",
        "MONITOR.KNN.ROOT",
        str(labelled),
        "MONITOR.KNN.K",
        "5",
        "MONITOR.KNN.RESIZE",
        "0",
    ]


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def without_times(found: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if "time" not in k} for row in found]


def end(folder: Path) -> dict:
    state = torch.load(folder / "checkpoint_0000006.pth", weights_only=True)
    return {**state["method"], **{f"m{n}": s["momentum_buffer"] for n, s in state["optimizer"]["state"].items()}}


def same(ours: dict, theirs: dict) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_run_is_bit_for_bit_the_one_without(
    pretrain: Command, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(tmp_path / "plain") == 0
    assert pretrain(tmp_path / "watched", *words, "LOG.TENSORBOARD", "True") == 0
    assert same(end(tmp_path / "plain"), end(tmp_path / "watched"))
    watched = rows(tmp_path / "watched")
    measured = [row for row in watched if "knn_top1" in row]
    assert [(row["epoch"], row["iteration"]) for row in measured] == [(0.0, 0), (1.0, 2), (2.0, 5)]
    assert all(0 <= row["knn_top1"] <= 100 for row in measured)
    rest = [row for row in watched if "knn_top1" not in row]
    assert without_times(rest) == without_times(rows(tmp_path / "plain"))
    assert "kNN after epoch 2.00: top-1 " in (tmp_path / "watched" / "log.txt").read_text()
    assert list((tmp_path / "watched" / "tensorboard" / "knn").glob("events.*"))


@pytest.mark.parametrize("at", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_killed_while_it_measures_the_resumed_run_measures_what_is_missing(
    pretrain: Command, tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert pretrain(whole, *words) == 0
    measure, calls = monitor.knn_accuracy, []

    def killed(*args: object, **options: object) -> float:
        calls.append(args)
        if len(calls) == at:
            raise RuntimeError("the power went")
        return measure(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(monitor, "knn_accuracy", killed)
    with pytest.raises(RuntimeError):
        pretrain(broken, *words)
    assert not (broken / "result.json").exists()
    assert pretrain(broken, *words, "--resume") == 0
    assert len(calls) == 4  # nothing was measured twice
    assert same(end(whole), end(broken))
    assert without_times(rows(broken)) == without_times(rows(whole))


def test_two_processes_measure_what_one_measures(pretrain: Command, tmp_path: Path, words: list[str]) -> None:
    """Each takes a part of the bank and of the test images; at the start, with equal weights, the value is the same."""
    words += ["SOLVER.EPOCHS", "1", "LOG.TENSORBOARD", "True"]
    assert pretrain(tmp_path / "one", *words) == 0
    assert pretrain(tmp_path / "two", *words, "--num-gpus", "2") == 0
    one, two = ([row for row in rows(tmp_path / name) if "knn_top1" in row] for name in ("one", "two"))
    assert [row["epoch"] for row in two] == [0, 1] and two[0] == one[0]
    assert len(list((tmp_path / "two" / "tensorboard" / "knn").iterdir())) == 1


@pytest.mark.slow
def test_killed_while_it_measures_each_value_is_there_once(
    pretrain: Command, config: Path, images: Path, tmp_path: Path, root: Path, words: list[str]
) -> None:
    """SIGKILL to the process group after the checkpoint of the first epoch and before the value that belongs to it."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert pretrain(whole, *words) == 0
    command = [sys.executable, "tools/pretrain.py", "--config-file", str(config), "--resume", "--output", str(broken)]
    command += ["DATA.ROOT", str(images), *words]

    def measured() -> int:
        file = broken / "metrics.json"
        return file.read_text().count("knn_top1") if file.exists() else 0

    for checkpoint, before in (("", 0), ("checkpoint_0000003.pth", 1)):
        process = subprocess.Popen(command, cwd=root, start_new_session=True, stderr=subprocess.DEVNULL)
        due = broken / (checkpoint or "config.yaml")
        while not due.exists() and process.poll() is None:
            time.sleep(0.001)
        assert process.poll() is None and measured() == before
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, cwd=root, stderr=subprocess.DEVNULL, check=False).returncode == 0
    mine, other = (without_times(rows(folder)) for folder in (broken, whole))
    assert [row for row in mine if "knn_top1" in row] == [row for row in other if "knn_top1" in row]
    assert [row for row in mine if "loss" in row] == [row for row in other if "loss" in row]
    assert same(end(broken), end(whole))


def test_every_second_epoch_and_the_last(pretrain: Command, tmp_path: Path, words: list[str]) -> None:
    assert pretrain(tmp_path / "out", *words, "MONITOR.KNN.PERIOD", "2", "SOLVER.EPOCHS", "3") == 0
    assert [row["epoch"] for row in rows(tmp_path / "out") if "knn_top1" in row] == [0, 2, 3]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["MONITOR.KNN.K", "31"], "MONITOR.KNN.K is 31, but"),
        (["MONITOR.KNN.VAL", "test"], "has no folder test/ (it has: train, val)"),
        (["MONITOR.KNN.ROOT", ""], "MONITOR.KNN.ROOT is not set"),
        (["MONITOR.KNN.RESIZE", "31"], "MONITOR.KNN.RESIZE is 31"),
        (["MONITOR.KNN.T", "0"], "MONITOR.KNN.T"),
    ],
)
def test_an_invalid_labelled_set_is_refused_before_anything_is_written(
    pretrain: Command, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert pretrain(tmp_path / "out", *words, *more) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_each_modules_mode_is_restored() -> None:
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Sequential(torch.nn.BatchNorm1d(2)))
    net[1].eval()
    with pytest.raises(KeyError), frozen(net):
        assert not any(module.training for module in net.modules())
        raise KeyError
    assert [module.training for module in net.modules()] == [True, True, False, False]
