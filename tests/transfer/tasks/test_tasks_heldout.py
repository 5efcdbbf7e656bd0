"""The held-out part of the training images: which it is, what it leaves, what the reference evaluators read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ssl_transfer.errors import UserError
from transfer.tasks.datasets import DatasetDict, Split
from transfer.tasks.heldout import HeldOut, hold_out
from transfer.tasks.task import Dataset, Task, load_task
from transfer.tasks.voc import image_list
from transfer.toy.build import Size, build_toy_sets

TOY = ("bus", "cat", "sheep")
# sha256sum of "0/000000" … "0/000039", sorted; the first ten.
GOLDEN = ["000007", "000008", "000017", "000021", "000023", "000025", "000027", "000036", "000038", "000039"]


def made(ids: list[str], others: list[str] = ()) -> Task:  # type: ignore[assignment]
    def dataset(name: str, folder: str, names: list[str]) -> Dataset:
        records = [DatasetDict(f"{folder}/JPEGImages/{i}.jpg", i, 10, 10) for i in names]
        return Dataset(Split(name, "voc", Path(folder), name), records, TOY)

    train = [dataset("trainval", "a", ids)] + ([dataset("more", "a", others)] if others else [])
    return Task("own", tuple(train), dataset("test", "b", ["t"]))


def ids_of(dataset: Dataset) -> list[str]:
    return [str(record.image_id) for record in dataset.records]


def part(task: Task, fraction: float = 0.25, seed: int = 0) -> HeldOut:
    return hold_out(task, fraction, seed, Path("/out"))


def test_the_part_depends_on_ids_and_seed_alone(tmp_path: Path) -> None:
    names = [f"{number:06d}" for number in range(40)]
    first, turned = part(made(names)), part(made(names[::-1]))
    assert set(ids_of(first.task.test)) == set(ids_of(turned.task.test))
    assert first.as_dict() == turned.as_dict()
    assert ids_of(first.task.test) == sorted(ids_of(first.task.test))  # the list's order is kept
    assert part(made(names), seed=1).as_dict()["sha256"] != first.as_dict()["sha256"]
    # Written down, so that another version holds out the same images.
    assert ids_of(first.task.test) == GOLDEN


def test_no_image_is_in_training_and_test_and_none_is_lost() -> None:
    names = [str(number) for number in range(40)]
    held = part(made(names)).task
    assert len(held.test.records) == 10 and len(held.train[0].records) == 30
    assert {*ids_of(held.test), *ids_of(held.train[0])} == set(names)


def test_an_image_that_a_second_split_lists_too_is_held_out_there_as_well() -> None:
    names = [str(number) for number in range(40)]
    held = part(made(names, [*names[:20], "x", "y"])).task
    assert not set(ids_of(held.test)) & set(ids_of(held.train[1]))
    assert {"x", "y"} <= set(ids_of(held.train[1]))


@pytest.mark.parametrize(("count", "fraction", "held"), [(2, 0.01, 1), (2, 0.99, 1), (100, 0.001, 1), (100, 0.5, 50)])
def test_at_least_one_image_is_held_out_and_one_remains(count: int, fraction: float, held: int) -> None:
    task = part(made([str(number) for number in range(count)]), fraction).task
    assert (len(task.test.records), len(task.train[0].records)) == (held, count - held)


def test_a_single_image_cannot_be_split() -> None:
    with pytest.raises(UserError, match="trainval has a single image"):
        part(made(["1"]))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "toy"
    build_toy_sets(out, size=Size(photos=8, voc2007=(16, 8), voc2012=(8, 8), coco=(12, 8)))
    return out / "detection"


def test_voc_s_part_is_a_list_that_reads_back_as_a_split(toy: Path, tmp_path: Path) -> None:
    task = load_task("voc07", ["voc_2007_trainval"], "voc_2007_test", toy, classes=TOY, check_counts=False)
    held = hold_out(task, 0.25, 0, tmp_path)
    held.write()
    split = held.task.test.split
    assert (tmp_path / "heldout.txt").read_text().split() == ids_of(held.task.test) == image_list(split)
    assert split.name == "voc_2007_trainval:heldout" and split.count is None
    assert held.as_dict()["split"] == "voc_2007_trainval" and held.as_dict()["images"] == 4


def test_coco_s_part_is_an_annotation_file_of_these_images_alone(toy: Path, tmp_path: Path) -> None:
    task = load_task("coco", ["coco_2017_train"], "coco_2017_val", toy, classes=TOY, check_counts=False)
    held = hold_out(task, 0.25, 0, tmp_path)
    held.write()
    content = json.loads((tmp_path / "heldout.json").read_text())
    assert {image["id"] for image in content["images"]} == {record.image_id for record in held.task.test.records}
    assert {entry["image_id"] for entry in content["annotations"]} <= {image["id"] for image in content["images"]}
    # Read back as a split of its own it is the same data set.
    own = {"part": {"LAYOUT": "coco", "FOLDER": "coco/train2017", "ANNOTATIONS": str(tmp_path / "heldout.json")}}
    read = load_task("own", ["part"], "part", toy, classes=TOY, own_splits=own).test
    assert read.records == held.task.test.records
    assert replace(held.task.test, split=read.split) == read
