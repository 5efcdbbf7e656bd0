"""VOC's layout: what is read, and that each fault is one line naming file and object."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_transfer.errors import UserError
from transfer.tasks.datasets import Split
from transfer.tasks.voc import read_voc

CLASSES = ("cat", "dog")


def thing(name: str = "cat", box: str = "1 2 30 20", difficult: str | None = "0") -> str:
    sides = "".join(
        f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box.split(), strict=False)
    )
    flag = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    return f"<object><name>{name}</name>{flag}<bndbox>{sides}</bndbox></object>"


def annotation(*things: str, size: str = "<size><width>40</width><height>30</height></size>") -> str:
    return f"<annotation>{size}{''.join(things)}</annotation>"


@pytest.fixture
def split(tmp_path: Path) -> Split:
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("b\na\n")
    for image in "ab":
        (tmp_path / f"JPEGImages/{image}.jpg").write_bytes(b"")
        (tmp_path / f"Annotations/{image}.xml").write_text(annotation(thing()))
    return Split("own", "voc", tmp_path, "train")


def test_images_come_in_the_lists_order_with_the_xml_s_numbers(split: Split) -> None:
    (split.folder / "Annotations/b.xml").write_text(annotation(thing("dog", "3 4 40 30", "1"), thing(difficult=None)))
    first, second = read_voc(split, CLASSES)
    assert (first.image_id, first.width, first.height, second.image_id) == ("b", 40, 30, "a")
    assert first.file == str(split.folder / "JPEGImages/b.jpg")
    assert [(t.label, t.box, t.difficult) for t in first.annotations] == [
        (1, (3, 4, 40, 30), True),
        (0, (1, 2, 30, 20), False),
    ]


def test_a_list_of_one_class_has_a_second_column(split: Split) -> None:
    (split.folder / "ImageSets/Main/train.txt").write_text("b -1\na  1\n\n")
    assert [record.image_id for record in read_voc(split, CLASSES)] == ["b", "a"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (annotation(thing("cart")), ["object 1", "'cart'", "did you mean cat?"]),
        (annotation(thing(), thing(box="1 2 60 20")), ["object 2", "1 2 60 20", "40 × 30"]),
        (annotation(thing(box="20 2 10 20")), ["object 1", "empty or outside"]),
        (annotation(thing(box="-5 2 10 20")), ["object 1", "outside"]),
        (annotation(thing(box="1 2 x 20")), ["object 1", "bndbox/xmax", "'x'"]),
        (annotation(thing(box="1 2 3")), ["object 1", "bndbox/ymax", "None"]),
        (annotation(thing(), size=""), ["size/width", "None"]),
        (annotation(thing())[:-9], ["not XML", "line 1"]),
        ("", ["not XML"]),
    ],
)
def test_a_broken_annotation_is_named_with_its_object(split: Split, content: str, words: list[str]) -> None:
    (split.folder / "Annotations/a.xml").write_text(content)
    with pytest.raises(UserError) as error:
        read_voc(split, CLASSES)
    assert all(word in str(error.value) for word in ["a.xml", *words]), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("JPEGImages/a.jpg", ["JPEGImages/a.jpg", "does not exist", "train.txt"]),
        ("Annotations/a.xml", ["Annotations/a.xml", "does not exist"]),
        ("ImageSets/Main/train.txt", ["train.txt", "does not exist"]),
    ],
)
def test_a_missing_file_is_named(split: Split, missing: str, words: list[str]) -> None:
    (split.folder / missing).unlink()
    with pytest.raises(UserError) as error:
        read_voc(split, CLASSES)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(("text", "word"), [("", "lists no image"), ("a\nb\na\n", "lists a twice")])
def test_a_list_that_cannot_be_is_refused(split: Split, text: str, word: str) -> None:
    (split.folder / "ImageSets/Main/train.txt").write_text(text)
    with pytest.raises(UserError, match=word):
        read_voc(split, CLASSES)


def test_a_box_may_count_from_zero(split: Split) -> None:
    (split.folder / "Annotations/a.xml").write_text(annotation(thing(box="0 0 40 30")))
    assert read_voc(split, CLASSES)[1].annotations[0].box == (0, 0, 40, 30)
