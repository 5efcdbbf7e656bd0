"""Every task of Table 5 from its command line to its result, on a handful of real images."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ssl_transfer.console import call_main
from ssl_transfer.errors import EXIT_OK
from ssl_transfer.files import read_json
from transfer.tasks.classes import COCO, VOC

pytestmark = pytest.mark.slow
TRAIN = {
    "voc07": {"voc_2007_trainval": 120},
    "voc07_vissl": {"voc_2007_trainval": 120},
    "voc0712": {"voc_2007_trainval": 120, "voc_2012_train": 100},
    "voc0712_trainval": {"voc_2007_trainval": 120, "voc_2012_trainval": 140},
    "coco": {"coco_2017_train": 100},
    "coco_2x": {"coco_2017_train": 100},
}
"""Each task's training splits and how many images the small real sets have of them."""


@pytest.mark.parametrize("task", TRAIN)
def test_a_task_runs_from_its_command_line_to_its_result(
    root: Path, real_data: Path, narrow_overlay: Path, tmp_path: Path, task: str
) -> None:
    from tools.transfer import main

    words = [
        "--config-file",
        root / f"configs/transfer/{task}.yaml",
        "--overlay",
        narrow_overlay,
        "--weights",
        "scratch",
    ]
    words += ["--seed", "1", "--output", tmp_path / "trial", "TRANSFER.DATA_ROOT", real_data / "detection"]
    assert call_main(main, [*map(str, words), "TRANSFER.CLASSES", "[]"]) == EXIT_OK
    result = read_json(tmp_path / "trial/result.json")
    assert (result["status"], result["task"], result["toy"]) == ("done", task, True)
    classes = COCO if task.startswith("coco") else VOC
    kinds = {"bbox", "segm"} if task.startswith("coco") else {"bbox"}
    assert result["metrics"].keys() == kinds
    for values in result["metrics"].values():
        assert list(values["per_class"]) == list(classes)
        assert all(0 <= values[key] <= 100 for key in ("AP", "AP50", "AP75"))
    assert result["settings"]["train_splits"] == list(TRAIN[task])
    assert result["settings"]["test_split"] == ("coco_2017_val" if task.startswith("coco") else "voc_2007_test")
    assert result["settings"]["iterations"] == 4 and result["guards"]["extra_norm"]
    assert not result["comparable"]["ok"] and "total batch is 2, not 16" in result["comparable"]["reasons"]


def test_the_shell_command_and_missing_data(root: Path, real_data: Path, narrow_overlay: Path, tmp_path: Path) -> None:
    import sys

    words = ["--config-file", "configs/transfer/voc07.yaml", "--overlay", narrow_overlay, "--weights", "scratch"]
    words += ["--seed", "1", "--output", tmp_path / "trial", "TRANSFER.CLASSES", "[]"]
    command = [sys.executable, "tools/transfer.py", *map(str, words)]

    def make_request(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], cwd=root, capture_output=True, text=True, timeout=300)

    refused = make_request("TRANSFER.DATA_ROOT", str(tmp_path))
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and str(tmp_path / "VOC2007") in refused.stderr
    assert not (tmp_path / "trial").exists()
    done = make_request("TRANSFER.DATA_ROOT", str(real_data / "detection"))
    assert done.returncode == 0 and "AP50" in done.stdout and (tmp_path / "trial/result.json").exists()
