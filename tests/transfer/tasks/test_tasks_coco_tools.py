"""COCO files as label tools write them: read like the plain file, said in the summary, refused by TRANSFER.STRICT."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ssl_transfer.errors import UserError
from transfer.tasks.datasets import DatasetDict, Split
from transfer.tasks.reading import slack_of
from transfer.tasks.task import Dataset, Task, TaskSettings, ground_truth, join_splits, read_split, training_faults

CLASSES = ("ship", "plane")
SIZE = (160, 120)
Change = Callable[[dict[str, Any], random.Random], Any]


def plain(rng: random.Random, images: int = 3) -> dict[str, Any]:
    """A valid file, ids in ascending order, with one polygon an object."""
    content: dict[str, Any] = {
        "info": {},
        "images": [],
        "annotations": [],
        "categories": [{"id": k, "name": name} for k, name in enumerate(CLASSES, start=1)],
    }
    for number in range(1, images + 1):
        content["images"].append({"id": number, "file_name": f"{number:06d}.jpg", "width": SIZE[0], "height": SIZE[1]})
        for _ in range(rng.randrange(1, 4)):
            x, y = rng.randrange(1, 80), rng.randrange(1, 60)
            w, h = rng.randrange(5, 70), rng.randrange(5, 50)
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": rng.randrange(1, 3),
                    "bbox": [x, y, w, h],
                    "area": float(w * h),
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
    return content


def read(folder: Path, content: dict[str, Any] | bytes, name: str = "own", strict: bool = False) -> Dataset:
    """Write and read a file; its images are beside it."""
    file = folder / f"{name}.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_split(Split(name, "coco", folder, annotations=file, strict=strict), CLASSES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(1, 4):
        Image.new("RGB", SIZE).save(tmp_path / f"{number:06d}.jpg")
    return tmp_path


def each(name: str, **changes: Callable[[Any], Any] | None) -> Change:
    """Change keys of every entry of a list; None removes the key."""

    def change(content: dict[str, Any], _: random.Random) -> None:
        for entry in content[name]:
            for key, to in changes.items():
                value = entry.pop(key)
                if to is not None:
                    entry[key] = to(value)

    return change


def both(*changes: Change) -> Change:
    def change(content: dict[str, Any], rng: random.Random) -> None:
        for one in changes:
            one(content, rng)

    return change


def root_category(content: dict[str, Any], rng: random.Random) -> None:
    content["categories"].insert(0, {"id": 0, "name": rng.choice(["things", "ship"]), "supercategory": "none"})


def text_ids(content: dict[str, Any], rng: random.Random) -> None:
    names = {image["id"]: f"{rng.choice('abc')}-{image['id']}" for image in content["images"]}
    each("images", id=names.get)(content, rng)
    each("annotations", image_id=names.get)(content, rng)


def outside(content: dict[str, Any], rng: random.Random) -> None:
    """One box reaches from its corner to a few pixels beyond the image's."""
    x, y, *_ = content["annotations"][0]["bbox"]
    by = rng.choice([0.5, 1, 4])
    content["annotations"][0]["bbox"] = [x, y, SIZE[0] - x + by, SIZE[1] - y]


TOOLS: dict[str, tuple[Change, str]] = {
    "no iscrowd": (each("annotations", iscrowd=None), "iscrowd missing: taken as 0"),
    "iscrowd null": (each("annotations", iscrowd=lambda _: None), "iscrowd missing: taken as 0"),
    "no area": (each("annotations", area=None), "area missing: computed"),
    "ids as digits": (
        both(
            each("images", id=lambda n: f"{n:06d}"), each("annotations", image_id=lambda n: f"{n:06d}", category_id=str)
        ),
        "taken as whole numbers",
    ),
    "ids as floats": (
        both(each("images", id=float), each("annotations", image_id=float, id=lambda n: 9e11 + n)),
        "taken as whole numbers",
    ),
    "ids as text": (text_ids, "images numbered from 1"),
    "sizes as floats": (each("images", width=float, height=str), "sizes such as 640.0"),
    "no sizes": (each("images", width=None, height=lambda _: 0), "3 images without a size"),
    "annotations from 0": (each("annotations", id=lambda n: n - 1), "annotations numbered from 1"),
    "annotations without ids": (each("annotations", id=None), "annotations numbered from 1"),
    "a root category": (root_category, "categor"),
    "backslashes": (each("images", file_name=lambda name: f"images\\{name}"), "3 images found"),
    "another ending": (each("images", file_name=lambda name: name.replace(".jpg", ".png")), "3 images found"),
    "Roboflow, CVAT, Label Studio": (
        both(
            lambda content, _: content.update(
                info={"year": "2024", "date_created": 0}, licenses=[{"id": 0, "name": ""}]
            ),
            each("images", width=float),
            lambda content, _: [image.update(date_captured=0, license="x", coco_url=0) for image in content["images"]],
            each("annotations", iscrowd=None, area=None, id=lambda n: f"obj-{n}"),
        ),
        "area missing",
    ),
}


def values(dataset: Dataset) -> list[Any]:
    """What training sees of a set, with areas as large or small as they are."""
    return [
        (
            (Path(record.file).name, record.image_id, record.width, record.height),
            [(one.label, tuple(map(float, one.box)), one.crowd, one.segmentation) for one in record.annotations],
        )
        for record in dataset.records
    ]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", TOOLS)
def test_an_ordinary_export_is_read_like_the_plain_file(folder: Path, name: str, seed: int) -> None:
    change, said = TOOLS[name]
    content = plain(random.Random(seed))
    clean = read(folder, content)
    assert clean.adjustments == () and clean.summary == "3 images"
    changed = copy.deepcopy(content)
    change(changed, random.Random(seed))
    found = read(folder, changed)
    assert values(found) == values(clean) and found.classes == clean.classes
    assert said in found.summary
    # The metric gets the same objects, under ids that it can use.
    truth = ground_truth(found)
    assert [one["bbox"] for one in truth["annotations"]] == [one["bbox"] for one in ground_truth(clean)["annotations"]]
    assert all(type(one["id"]) is int and one["id"] > 0 for one in truth["annotations"])
    for given, computed in zip(content["annotations"], truth["annotations"], strict=True):
        assert computed["area"] == pytest.approx(given["area"], rel=0.02)
    if name != "annotations from 0":  # which only one of the two evaluators of published sets misreads
        with pytest.raises(UserError, match=r"own\.json"):
            read(folder, changed, strict=True)


def test_a_box_a_few_pixels_outside_is_clipped_for_training_and_metric(folder: Path) -> None:
    for seed in range(6):
        content = plain(random.Random(seed))
        outside(content, random.Random(seed))
        found = read(folder, content)
        x, y, w, h = found.records[0].annotations[0].box
        assert (x + w, y + h) == SIZE
        assert "1 boxes up to" in found.summary and "px outside clipped" in found.summary
        assert ground_truth(found)["annotations"][0]["bbox"] == [x, y, w, h]
        content["annotations"][0]["bbox"] = [x, y, SIZE[0] - x + slack_of(SIZE[0]) + 1, 5]
        with pytest.raises(UserError, match=r"annotations\[0\] \(id 1\).* is outside its image"):
            read(folder, content)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_and_utf_16_are_read(folder: Path, encoding: str) -> None:
    content = plain(random.Random(3))
    assert values(read(folder, json.dumps(content).encode(encoding))) == values(read(folder, content))


def test_splits_that_number_their_classes_differently_are_matched_by_name(folder: Path) -> None:
    content = plain(random.Random(1))
    other = copy.deepcopy(content)
    each("categories", id=lambda n: 30 - n)(other, random.Random(0))
    each("annotations", category_id=lambda n: 30 - n)(other, random.Random(0))
    train, test = read(folder, other, "train"), read(folder, content, "test")
    assert train.classes != test.classes
    task = join_splits("own", [train, test])
    assert task.classes == CLASSES == task.train[0].classes
    assert values(task.train[0]) == values(test)
    assert [one["category_id"] for one in ground_truth(task.train[0])["annotations"]] == [
        one["category_id"] for one in other["annotations"]
    ]
    assert "matched by name" in task.train[0].summary
    with pytest.raises(UserError, match="order the classes differently"):
        join_splits("own", [read(folder, other, "train", strict=True), test])


def test_a_class_may_be_missing_in_one_split_and_not_in_all(folder: Path) -> None:
    content = plain(random.Random(1))
    only = copy.deepcopy(content)
    only["categories"] = only["categories"][:1]
    each("annotations", category_id=lambda _: 1)(only, random.Random(0))
    train, test = read(folder, content, "train"), read(folder, only, "test")
    assert test.classes == CLASSES and "no category plane" in test.summary
    join_splits("own", [train, test])
    with pytest.raises(UserError, match="no split has a category 'plane'"):
        join_splits("own", [read(folder, only, "train"), test])


def test_two_images_are_not_found_as_one(folder: Path) -> None:
    content = plain(random.Random(1))
    for image in content["images"][:2]:
        image["file_name"] = f"{image['id']}\\000001.jpg"
    with pytest.raises(UserError, match=r"2 images of other names are found as .*000001\.jpg"):
        read(folder, content)
    (folder / "000003.png").touch()
    (folder / "000003.jpg").rename(folder / "000003.jpeg")
    with pytest.raises(UserError, match=r"'000003\.jpg' may be .*000003\.jpeg and .*000003\.png"):
        read(folder, plain(random.Random(1)))


NAN, INF = float("nan"), float("inf")
WRONG: list[tuple[str, Any]] = [
    *(
        ("bbox", value)
        for value in ([NAN, 1, 2, 3], [1, 2, INF, 4], [1, 2, 10**400, 4], [0.1, 0.2, 0.3, 0.4], "1 2 3 4")
    ),
    *(("area", value) for value in (NAN, INF, -1, True, [4])),
    *(("iscrowd", value) for value in (2, "yes", NAN)),
    *(("segmentation", [[value, 5, 60, 5, 60, 60]]) for value in (NAN, INF, "5", None, [5], 1e12, 10**400)),
    ("segmentation", [[0, 0, 160, 120] * 20_000]),
    *(("segmentation", value) for value in ([1, 2, 3], "x", [[0.1, 0.2, 0.3, 0.2, 0.3, 0.4]], {"size": [120, 160]})),
    *(("segmentation", {"size": size, "counts": [19200]}) for size in ([160, 120], [120], [120, "a"], [1 << 40, 160])),
    *(
        ("segmentation", {"size": [120, 160], "counts": counts})
        for counts in ([19200, 5], [-5, 19205], ["19200"], [NAN], "", "~~~~~~~~~~~~", "zz", "\u00ff", "1", 7)
    ),
]


@pytest.mark.parametrize(("key", "value"), WRONG, ids=[f"{key} {value!r:.40}" for key, value in WRONG])
def test_no_value_that_a_rasteriser_or_the_metric_cannot_use_gets_through(folder: Path, key: str, value: Any) -> None:
    content = plain(random.Random(4))
    for strict in (False, True):
        index = random.Random(repr(value)).randrange(len(content["annotations"]))
        changed = copy.deepcopy(content)
        changed["annotations"][index][key] = value
        if strict and key == "bbox" and value == [0.1, 0.2, 0.3, 0.4]:
            continue  # possible: a published set may have an object of half a pixel
        with pytest.raises(UserError, match=rf"own\.json, annotations\[{index}\] \(id {index + 1}\): {key}|RLE"):
            read(folder, changed, strict=strict)


def test_run_lengths_are_those_of_pycocotools(folder: Path) -> None:
    import numpy as np
    import pycocotools.mask as rle

    rng = np.random.default_rng(0)
    for _ in range(30):
        mask = np.asfortranarray(rng.random((SIZE[1], SIZE[0])) < rng.random() ** 2, dtype=np.uint8)
        encoded = rle.encode(mask)
        content = plain(random.Random(4))
        thing = content["annotations"][0]
        thing["segmentation"] = {"size": [SIZE[1], SIZE[0]], "counts": encoded["counts"].decode()}
        del thing["area"]
        found = read(folder, content).records[0].annotations[0]
        assert (rle.decode(found.segmentation) == mask).all() and found.area == mask.sum()


def test_what_training_would_refuse_is_named_by_split(folder: Path) -> None:
    content = plain(random.Random(1))
    each("annotations", segmentation=lambda _: [])(content, random.Random(0))
    boxes = read(folder, content, "train")
    masks = read(folder, plain(random.Random(1)), "test")
    settings = TaskSettings.of(
        {"DATASETS.TRAIN": ["a"], "DATASETS.TEST": ["a"], "MODEL.MASK_ON": True}
        | {
            f"TRANSFER.SPLITS.a.{key}": value
            for key, value in {"LAYOUT": "coco", "FOLDER": "x", "ANNOTATIONS": "x"}.items()
        }
    )
    found = list(training_faults(join_splits("own", [boxes, masks]), settings))
    assert len(found) == len(content["annotations"]) and all(dataset is boxes for dataset, _ in found)
    assert all("has no segmentation, which MODEL.MASK_ON needs" in fault for _, fault in found)
    assert {dataset.split.name for dataset, _ in training_faults(join_splits("own", [masks, boxes]), settings)} == {
        "train"
    }
    assert not list(training_faults(join_splits("own", [masks, masks]), settings))
    crowds = plain(random.Random(1))
    each("annotations", iscrowd=lambda _: 1)(crowds, random.Random(0))
    ((_, fault),) = training_faults(join_splits("own", [read(folder, crowds), masks]), settings)
    assert "own: no image has an object to train on; all are iscrowd 1" in fault
    thin = Dataset(masks.split, [DatasetDict("thin.jpg", 1, 1, 9000, masks.records[0].annotations)], CLASSES, (1, 2))
    ((_, fault),) = training_faults(Task("own", (masks,), thin), settings)
    assert "thin.jpg is 1 × 9000, too thin" in fault
