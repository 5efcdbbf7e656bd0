"""The kNN monitor: what it writes, and that the run does not notice it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pretrain.engine import knn as monitor
from pretrain.evaluation.features import frozen

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

    def killed(*args: object) -> float:
        calls.append(args)
        if len(calls) == at:
            raise RuntimeError("the power went")
        return measure(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(monitor, "knn_accuracy", killed)
    with pytest.raises(RuntimeError):
        pretrain(broken, *words)
    assert not (broken / "result.json").exists()
    assert pretrain(broken, *words, "--resume") == 0
    assert len(calls) == 4  # nothing was measured twice
    assert same(end(whole), end(broken))
    assert without_times(rows(broken)) == without_times(rows(whole))


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
def test_what_cannot_be_measured_is_refused_before_anything_is_written(
    pretrain: Command, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert pretrain(tmp_path / "out", *words, *more) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_each_module_gets_its_own_mode_back() -> None:
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Sequential(torch.nn.BatchNorm1d(2)))
    net[1].eval()
    with pytest.raises(KeyError), frozen(net):
        assert not any(module.training for module in net.modules())
        raise KeyError
    assert [module.training for module in net.modules()] == [True, True, False, False]
