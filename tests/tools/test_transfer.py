"""The command line of fine-tuning: answers, exit codes, one-line errors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ssl_transfer.console import call_main
from ssl_transfer.errors import EXIT_OK, EXIT_USAGE
from tools.transfer import main
from transfer.engine.config import load_config
from transfer.engine.prepare import TrialRequest, _resolve

Words = Callable[..., list[str]]


@pytest.fixture
def words(root: Path, narrow_overlay: Path, toy_detection: Path, tmp_path: Path) -> Words:
    """The command line of a small trial in `tmp_path / "trial"`."""

    def make(*more: str) -> list[str]:
        found = ["--config-file", str(root / "configs/transfer/voc07.yaml"), "--overlay", str(narrow_overlay)]
        found += ["--weights", "scratch", "--seed", "1", "--output", str(tmp_path / "trial")]
        return [*found, *more, "TRANSFER.DATA_ROOT", str(toy_detection)]

    return make


def test_a_trial_prints_its_numbers_and_a_second_call_does_nothing(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = words()
    assert call_main(main, asked) == EXIT_OK
    out = capsys.readouterr().out
    assert out.startswith("bbox  AP50 ") and "toy: compares with nothing published" in out
    assert out.rstrip().endswith("trial/result.json")
    assert call_main(main, [*asked, "--resume"]) == EXIT_OK
    assert "this trial has ended before (done); nothing was done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--weights", "nowhere.pkl"], "nowhere.pkl"),
        (["--config-file", "nowhere.yaml"], "config file nowhere.yaml does not exist"),
        (["--overlay", "nowhere.yaml"], "config file nowhere.yaml does not exist"),
        (["--num-gpus", "3"], "does not divide among 3 processes"),
        (["--reference-gpus", "5"], "--reference-gpus 5"),
        (["--eval-only"], "holds no trial"),
        (["SOLVER.BASE_LRR", "1"], "did you mean SOLVER.BASE_LR"),
        (["TRANSFER.CHECK_COUNTS", "True"], "published with 5011"),
        (["TRANSFER.CLASSES", "['bus', 'cat']"], "class 'sheep' is not one of the task's"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(
    words: Words,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: list[str],
    message: str,
) -> None:
    assert call_main(main, words(*change)) == EXIT_USAGE
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and not captured.out
    assert not (tmp_path / "trial").exists()


def test_the_cpu_overlay_leaves_a_task_s_classes_alone(
    root: Path, toy_detection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user's own classes stay with it; a toy set names its own."""
    overlay = root / "configs/overlays/cpu.yaml"
    task = tmp_path / "own.yaml"
    for line, expected in (("CLASSES: [ship, plane]", ["ship", "plane"]), ("", ["bus", "cat", "sheep"])):
        task.write_text(
            f"_BASE_: {root}/configs/transfer/voc07.yaml\nTRANSFER:\n  DATA_ROOT: {toy_detection}\n  {line}\n"
        )
        loaded = load_config(task, overlay)
        assert (expected if line else []) == loaded.cfg.TRANSFER.CLASSES
        request = TrialRequest(config_file=task, overlay=overlay, weights="scratch", seed=1, output=tmp_path / "trial")
        assert expected == _resolve(loaded, request, 1).TRANSFER.CLASSES
    words = ["--config-file", str(task), "--overlay", str(overlay), "--weights", "scratch", "--seed", "1"]
    words += ["--output", str(tmp_path / "trial"), "TRANSFER.CLASSES", "['ship', 'plane']"]
    assert call_main(main, words) == EXIT_USAGE
    assert re.search(r"\.xml, object 1: class '(bus|cat|sheep)'", capsys.readouterr().err)


def test_a_missing_argument_names_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert call_main(main, ["--seed", "1"]) == EXIT_USAGE
    assert "--config-file" in capsys.readouterr().err


def test_broken_data_is_found_before_the_first_step(
    words: Words, toy_detection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    shutil.copytree(toy_detection / "VOC2007", tmp_path / "VOC2007")
    image = (tmp_path / "VOC2007/ImageSets/Main/test.txt").read_text().split()[0]
    (tmp_path / f"VOC2007/JPEGImages/{image}.jpg").unlink()
    asked = words()
    assert call_main(main, [*asked[:-1], str(tmp_path)]) == EXIT_USAGE
    assert f"{image}.jpg does not exist, but" in capsys.readouterr().err
    assert not (tmp_path / "trial").exists()


def test_a_diverged_trial_is_done_and_says_so(words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("SOLVER.BASE_LR", "1e30", "SOLVER.WARMUP_ITERS", "0")
    assert call_main(main, words(*more)) == EXIT_OK
    assert "diverged at iteration 1, lr 1e+30" in capsys.readouterr().out
    assert json.loads((tmp_path / "trial/result.json").read_text())["status"] == "diverged"
