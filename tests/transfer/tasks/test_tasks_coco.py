"""COCO's layout: what is read, and that each fault is one line naming file and annotation."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from ssl_transfer.errors import UserError
from transfer.tasks.coco import read_coco
from transfer.tasks.datasets import Split

CONTENT: dict[str, Any] = {
    "images": [
        {"id": 9, "file_name": "b.jpg", "width": 40, "height": 30},
        {"id": 2, "file_name": "a.jpg", "width": 20, "height": 20},
    ],
    "annotations": [
        {
            "id": 1,
            "image_id": 9,
            "category_id": 17,
            "bbox": [1.5, 2, 10, 8],
            "area": 40.0,
            "iscrowd": 0,
            "segmentation": [[1, 2, 11, 2, 11, 10], [1, 2]],
        },
        {
            "id": 5,
            "image_id": 9,
            "category_id": 3,
            "bbox": [0, 0, 40, 30],
            "area": 600,
            "iscrowd": 1,
            "segmentation": {"counts": [600, 600], "size": [30, 40]},
        },
        {
            "id": 4,
            "image_id": 9,
            "category_id": 3,
            "bbox": [0, 0, 4, 3],
            "area": 6,
            "iscrowd": 0,
            "segmentation": [[1, 2, 3, 4]],
        },
    ],
    "categories": [{"id": 17, "name": "cat"}, {"id": 3, "name": "car"}],
}
CLASSES = ("cat", "car")


@pytest.fixture
def split(tmp_path: Path) -> Split:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    return write(tmp_path, CONTENT)


def write(folder: Path, content: Any) -> Split:
    (folder / "own.json").write_text(json.dumps(content))
    return Split("own", "coco", folder, annotations=folder / "own.json")


def test_images_come_in_the_order_of_their_ids_and_labels_in_that_of_the_categories(split: Split) -> None:
    (first, second), categories = read_coco(split, CLASSES)
    assert categories.names == ("car", "cat") and dict(categories.labels) == {3: 0, 17: 1}
    assert (first.image_id, first.annotations) == (2, ())
    assert (second.image_id, second.file) == (9, str(split.folder / "b.jpg"))
    cat, crowd = second.annotations  # the third has no polygon of three points
    assert (cat.label, cat.box, cat.crowd, cat.segmentation) == (1, (1.5, 2, 10, 8), False, [[1, 2, 11, 2, 11, 10]])
    assert (crowd.label, crowd.crowd) == (0, True) and isinstance(crowd.segmentation["counts"], bytes)


def edited(path: str, value: Any) -> dict[str, Any]:
    content = copy.deepcopy(CONTENT)
    *parents, leaf = path.split("/")
    node: Any = content
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node[part]
    if isinstance(node, list):
        node[int(leaf)] = value
    elif value is None:
        del node[leaf]
    else:
        node[leaf] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("annotations/0/category_id", 18, ["annotations[0] (id 1)", "no category has the id 18"]),
        ("annotations/0/image_id", 7, ["annotations[0]", "(id 1)", "no image has the id 7"]),
        ("annotations/0/id", 5, ["annotations[1]", "id 5", "twice"]),
        ("annotations/0/bbox", [1, 2, 3], ["annotations[0] (id 1)", "four numbers"]),
        ("annotations/0/bbox", [1, 2, "3", 4], ["annotations[0] (id 1)", "four numbers"]),
        ("annotations/0/bbox", [60, 2, 10, 8], ["annotations[0] (id 1)", "outside its image b.jpg"]),
        ("annotations/0/bbox", [1, 2, -3, 8], ["annotations[0] (id 1)", "negative"]),
        ("annotations/0/bbox", None, ["annotations[0] (id 1)", "bbox must be four numbers"]),
        ("annotations/1/area", -1, ["annotations[1]", "area", "not -1"]),
        ("annotations/0/area", "40", ["annotations[0]", "area", "not '40'"]),
        ("annotations/0/iscrowd", 2, ["annotations[0]", "iscrowd must be 0 or 1, not 2"]),
        ("annotations/0/segmentation", "x", ["annotations[0] (id 1)", "polygons"]),
        ("annotations/1/segmentation", {"size": [30, 40]}, ["annotations[1] (id 5)", "counts"]),
        ("images/1/id", 9, ["images[1]", "id 9", "twice"]),
        ("images/1/file_name", None, ["images[1]", "file_name"]),
        ("images/1/file_name", "c.jpg", ["c.jpg does not exist"]),
        ("images/0", "x", ["images[0]"]),
        ("categories/0/name", "cart", ["category 'cart'", "did you mean ca"]),
        ("categories", [{"id": 17, "name": "cat"}], ["no category 'car'"]),
        ("annotations", [], ["no list 'annotations'"]),
        ("images", None, ["no list 'images'"]),
    ],
)
def test_a_fault_is_named_with_its_object(split: Split, path: str, value: Any, words: list[str]) -> None:
    write(split.folder, edited(path, value))
    with pytest.raises(UserError) as error:
        read_coco(split, CLASSES)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "own.json" in str(error.value) and "\n" not in str(error.value)


def test_a_file_cut_short_is_named_with_its_line(split: Split) -> None:
    assert split.annotations is not None
    split.annotations.write_text(json.dumps(CONTENT, indent=1)[:-40])
    with pytest.raises(UserError, match=r"own\.json, line \d+: not JSON"):
        read_coco(split, CLASSES)


def test_a_polygon_may_overshoot_the_edge_a_little(split: Split) -> None:
    write(split.folder, edited("annotations/0/bbox", [-0.4, 2, 40.9, 8]))
    assert len(read_coco(split, CLASSES)[0][1].annotations) == 2
