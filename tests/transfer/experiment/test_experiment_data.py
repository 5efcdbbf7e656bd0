"""Annotations are checked where a plan is made: a faulty set waits in no queue."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.transfer.experiment.small_world import World
from transfer.tasks import task as tasks

CONFIG = """\
_BASE_: base.yaml
TRANSFER:
  TASK: own
  CLASSES: [ship]
  SPLITS:
    train: {LAYOUT: coco, FOLDER: own, ANNOTATIONS: own/train.json}
    test: {LAYOUT: coco, FOLDER: own, ANNOTATIONS: own/test.json}
DATASETS: {TRAIN: [train], TEST: [test]}
"""


@pytest.fixture
def own(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """The small experiment with one task on a user's own COCO files, with boxes only."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(world.base / "cache"))
    (world.base / "configs/own.yaml").write_text(CONFIG)
    (world.base / "detection/own").mkdir()
    for name in ("train", "test"):
        (world.base / f"detection/own/{name}.jpg").touch()
        write(world, name, [1, 2, 10, 8])
    world.edit(tasks={"own": {"config": f"{world.base}/configs/own.yaml"}}, rows={"scratch": {"scratch": True}})
    return world


def write(world: World, name: str, box: list[object]) -> None:
    image = {"id": 1, "file_name": f"{name}.jpg", "width": 40, "height": 30}
    thing = {"id": 1, "image_id": 1, "category_id": 1, "bbox": box}
    content = {"images": [image], "annotations": [thing], "categories": [{"id": 1, "name": "ship"}]}
    (world.base / f"detection/own/{name}.json").write_text(json.dumps(content))


def test_a_sound_set_is_submitted(own: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert own.launch("plan") == 0 and "refuse" not in capsys.readouterr().err
    assert own.launch("submit") == 0


def test_a_fault_is_said_by_plan_and_refused_by_submit(own: World, capsys: pytest.CaptureFixture[str]) -> None:
    write(own, "test", [1, 2, float("nan"), 8])
    assert own.launch("plan") == 0
    said = capsys.readouterr().err
    assert "submit would refuse" in said and "tasks.own: " in said and "test.json, annotations[0] (id 1): bbox" in said
    assert own.launch("submit") == 2
    assert "test.json, annotations[0] (id 1): bbox" in capsys.readouterr().err
    assert not own.run_dir.exists()


def test_each_task_is_checked_with_its_own_settings(own: World, capsys: pytest.CaptureFixture[str]) -> None:
    task = {"config": f"{own.base}/configs/own.yaml"}
    own.edit(tasks={"own": task, "masks": {**task, "overrides": {"MODEL.MASK_ON": True}}})
    own.launch("plan")
    (line,) = capsys.readouterr().err.splitlines()
    assert "tasks.masks: " in line and "has no segmentation, which MODEL.MASK_ON needs" in line
    assert f"1 more: python tools/data.py check --config-file {own.base}/configs/own.yaml" in line
    own.edit(tasks={"own": {**task, "overrides": {"TRANSFER.STRICT": True}}})
    own.launch("plan")
    assert "iscrowd must be 0 or 1, it has none" in capsys.readouterr().err


def test_what_is_done_is_not_checked_again(own: World) -> None:
    assert own.launch("submit") == 0
    (own.base / "detection/own/train.json").unlink()
    assert own.launch("submit") == 0


def test_slow_reading_is_cached_until_a_file_changes(
    own: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []
    whole = tasks._read_faults
    monkeypatch.setattr(tasks, "CACHED_FROM", 0.0)
    monkeypatch.setattr(tasks, "_read_faults", lambda *words: calls.append(1) or whole(*words))
    for _ in range(3):
        own.launch("plan")
    assert len(calls) == 1 and "refuse" not in capsys.readouterr().err
    write(own, "test", [1, 2, -10, 8])
    for _ in range(2):
        own.launch("plan")
        assert "negative side" in capsys.readouterr().err
    assert len(calls) == 2
    (own.base / "detection/own/test.jpg").rename(own.base / "detection/own/other.jpg")
    own.launch("plan")
    assert "test.jpg does not exist" in capsys.readouterr().err


def test_a_plan_with_own_sets_imports_no_torch(own: World, root: Path) -> None:
    code = (
        "import sys; from transfer.experiment.decide import decide; from transfer.experiment.service import "
        f"open_experiment; opened = open_experiment({str(own.file)!r}); "
        "assert opened.data_problems(decide(opened.graph, opened.snapshot())) == []; "
        "sys.exit(bool({'torch', 'detectron2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
