"""The command line of fine-tuning: answers, exit codes, one-line errors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from common.console import call
from common.errors import EXIT_OK, EXIT_USAGE
from tools.transfer import main
from transfer.toy.build import Size, build

NARROW = {
    "TRANSFER": {"TOY": True, "CLASSES": ["bus", "cat", "sheep"], "CHECK_COUNTS": False},
    "MODEL": {
        "DEVICE": "cpu",
        "RESNETS": {"STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 4},
        "ROI_HEADS": {"BATCH_SIZE_PER_IMAGE": 8},
        "ROI_BOX_HEAD": {"POOLER_RESOLUTION": 6},
        "RPN": {"PRE_NMS_TOPK_TRAIN": 50, "POST_NMS_TOPK_TRAIN": 20, "PRE_NMS_TOPK_TEST": 50, "POST_NMS_TOPK_TEST": 10},
    },
    "INPUT": {"MIN_SIZE_TRAIN": [48], "MIN_SIZE_TEST": 48},
    "DATALOADER": {"NUM_WORKERS": 0},
    "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 2, "STEPS": []},
    "TEST": {"PRECISE_BN": {"NUM_ITER": 1}},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with toy sets and the overlay of a narrow detector."""
    folder = tmp_path_factory.mktemp("world")
    build(folder / "toy", size=Size(photos=8, voc2007=(16, 8), voc2012=(8, 8), coco=(8, 8)))
    (folder / "narrow.yaml").write_text(yaml.safe_dump({"transfer": NARROW}))
    return folder


def words(root: Path, world: Path, output: Path, *more: str) -> list[str]:
    found = ["--config-file", str(root / "configs/transfer/voc07.yaml"), "--overlay", str(world / "narrow.yaml")]
    found += ["--weights", "scratch", "--seed", "1", "--output", str(output)]
    return [*found, *more, "TRANSFER.DATA_ROOT", str(world / "toy/detection")]


def test_a_trial_prints_its_numbers_and_asked_again_says_so(
    root: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = words(root, world, tmp_path / "trial")
    assert call(main, asked) == EXIT_OK
    out = capsys.readouterr().out
    assert out.startswith("bbox  AP50 ") and "toy: compares with nothing published" in out
    assert out.rstrip().endswith("trial/result.json")
    assert call(main, [*asked, "--resume"]) == EXIT_OK
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
    root: Path,
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: list[str],
    message: str,
) -> None:
    assert call(main, words(root, world, tmp_path / "trial", *change)) == EXIT_USAGE
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and not captured.out
    assert not (tmp_path / "trial").exists()


def test_a_missing_argument_names_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(main, ["--seed", "1"]) == EXIT_USAGE
    assert "--config-file" in capsys.readouterr().err


def test_broken_data_is_found_before_the_first_step(
    root: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    shutil.copytree(world / "toy/detection/VOC2007", tmp_path / "VOC2007")
    image = (tmp_path / "VOC2007/ImageSets/Main/test.txt").read_text().split()[0]
    (tmp_path / f"VOC2007/JPEGImages/{image}.jpg").unlink()
    asked = words(root, world, tmp_path / "trial")
    assert call(main, [*asked[:-1], str(tmp_path)]) == EXIT_USAGE
    assert f"{image}.jpg does not exist, but" in capsys.readouterr().err
    assert not (tmp_path / "trial").exists()


def test_a_diverged_trial_is_done_and_says_so(
    root: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("SOLVER.BASE_LR", "1e30", "SOLVER.WARMUP_ITERS", "0")
    assert call(main, words(root, world, tmp_path / "trial", *more)) == EXIT_OK
    assert "diverged at iteration 1, lr 1e+30" in capsys.readouterr().out
    assert json.loads((tmp_path / "trial/result.json").read_text())["status"] == "diverged"


def test_help_answers_at_once_without_torch(root: Path, cpu_clock: Callable[[], float]) -> None:
    start = cpu_clock()
    code = (
        "import sys; from tools.transfer import main\ntry: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert "examples:" in done.stdout and "--reference-gpus" in done.stdout
    assert cpu_clock() - start < 5  # a second on an idle machine
