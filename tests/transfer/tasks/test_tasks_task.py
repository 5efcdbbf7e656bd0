"""Tasks: names, counts, roots, class lists, own splits."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_transfer.errors import UserError
from transfer.tasks.classes import COCO, VOC
from transfer.tasks.datasets import PUBLISHED, data_root, find_split
from transfer.tasks.task import load_task
from transfer.toy.build import Size, build_toy_sets

TOY = ("bus", "cat", "sheep")
# PROTOCOL, section 2, and issue 6: what the published splits hold.
COUNTS = {
    "voc_2007_trainval": 5011,
    "voc_2007_test": 4952,
    "voc_2012_train": 5717,
    "voc_2012_trainval": 11540,
    "coco_2017_train": 118287,
    "coco_2017_val": 5000,
}


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "toy"
    build_toy_sets(out, size=Size(photos=8, voc2007=(16, 8), voc2012=(8, 8), coco=(8, 8)))
    return out / "detection"


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_a_split_of_another_size_is_refused_by_default(toy: Path, name: str, count: int) -> None:
    assert PUBLISHED[name].count == count
    with pytest.raises(UserError, match=f"{name} has .* published with {count}; .* TRANSFER.CHECK_COUNTS False"):
        load_task("own", [name], name, toy, classes=TOY)
    assert load_task("own", [name], name, toy, classes=TOY, check_counts=False).test.records


def test_two_training_splits_are_kept_in_order(toy: Path) -> None:
    task = load_task(
        "voc0712", ["voc_2007_trainval", "voc_2012_train"], "voc_2007_test", toy, classes=TOY, check_counts=False
    )
    assert [len(dataset.records) for dataset in task.train] == [16, 8]
    assert (task.layout, task.classes, len(task.test.records)) == ("voc", TOY, 8)


def test_the_benchmarks_have_their_classes() -> None:
    assert (len(VOC), len(set(VOC)), len(COCO), len(set(COCO))) == (20, 20, 80, 80)
    assert (VOC[0], VOC[-1], COCO[0], COCO[-1]) == ("aeroplane", "tvmonitor", "person", "toothbrush")


def test_the_small_real_sets_hold_the_benchmarks_classes(real_data: Path) -> None:
    for name, split, classes in (("voc", "voc_2007_test", VOC), ("coco", "coco_2017_val", COCO)):
        task = load_task(name, [split], split, real_data / "detection", check_counts=False)
        assert task.classes == classes


def test_a_class_the_task_does_not_list_is_refused(toy: Path) -> None:
    with pytest.raises(UserError, match=r"Annotations/\d+\.xml, object \d+: class '.*' is not one of the task's"):
        load_task("own", ["voc_2007_trainval"], "voc_2007_test", toy, classes=("bus", "cat"), check_counts=False)
    with pytest.raises(UserError, match="'cat' is listed twice"):
        load_task("own", ["voc_2007_trainval"], "voc_2007_test", toy, classes=("cat", "cat"), check_counts=False)


def test_an_unknown_split_lists_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean voc_2007_trainval"):
        find_split("voc_2007_trainva", Path("x"), {})


def test_layouts_do_not_mix(toy: Path) -> None:
    with pytest.raises(UserError, match="mix the layouts coco and voc"):
        load_task("own", ["voc_2007_trainval"], "coco_2017_val", toy, classes=TOY, check_counts=False)


def test_a_missing_root_or_folder_is_named(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"nowhere/VOC2007 is not a folder.* set TRANSFER.DATA_ROOT or DETECTRON2_DATASETS"
    ):
        load_task("own", ["voc_2007_trainval"], "voc_2007_test", tmp_path / "nowhere")
    with pytest.raises(UserError, match="VOC2007 is not a folder"):
        load_task("own", ["voc_2007_trainval"], "voc_2007_test", tmp_path)
    shutil.copytree(toy / "coco" / "annotations", tmp_path / "coco" / "annotations")
    with pytest.raises(UserError, match="train2017 is not a folder"):
        load_task("own", ["coco_2017_train"], "coco_2017_val", tmp_path, classes=TOY, check_counts=False)


def test_the_root_is_the_configured_one_else_the_variable_else_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "from/variable")
    assert data_root("from/config") == Path("from/config")
    assert data_root("") == Path("from/variable")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert data_root("") == Path("datasets")


def test_own_splits_of_both_layouts(toy: Path) -> None:
    own = {
        "mine": {"LAYOUT": "voc", "FOLDER": "VOC2012", "IMAGE_SET": "val", "YEAR": 2012, "COUNT": 8},
        "yours": {
            "LAYOUT": "coco",
            "FOLDER": str(toy / "coco/val2017"),
            "ANNOTATIONS": "coco/annotations/instances_val2017.json",
        },
    }
    task = load_task("own", ["mine"], "mine", toy, classes=TOY, own_splits=own)
    assert (len(task.test.records), task.test.split.year) == (8, 2012)
    assert load_task("own", ["yours"], "yours", toy, classes=TOY, own_splits=own).layout == "coco"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"LAYOUT": "yolo", "FOLDER": "x"}, r"SPLITS\.mine: LAYOUT: .*yolo"),
        ({"LAYOUT": "voc", "FOLDER": "x"}, "IMAGE_SET is missing; the layout voc needs it"),
        ({"LAYOUT": "coco", "FOLDER": "x"}, "ANNOTATIONS is missing"),
        ({"LAYOUT": "coco", "FOLDERS": "x"}, "FOLDERS: unknown key; did you mean FOLDER"),
        ({"LAYOUT": "voc", "FOLDER": "x", "IMAGE_SET": "a", "YEAR": 2010}, "YEAR: .*2010"),
        ({"LAYOUT": "voc", "FOLDER": "x", "IMAGE_SET": "a", "COUNT": "8"}, "COUNT: .*integer"),
        ("x", "must hold keys and values"),
    ],
)
def test_a_wrong_own_split_is_named(entry: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_split("mine", Path("x"), {"mine": entry})


def test_tasks_import_neither_torch_nor_detectron2(root: Path) -> None:
    code = "import sys, transfer.tasks.task; sys.exit(bool({'torch', 'detectron2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
