"""Bad input to a trial: one line that names file and object, exit 2, nothing written, before the first step."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ssl_transfer.console import call_main
from ssl_transfer.errors import EXIT_OK, EXIT_USAGE, UserError
from tools.transfer import main


@pytest.fixture
def data(toy_detection: Path, tmp_path: Path) -> Path:
    """A data root that a test may break."""
    shutil.copytree(toy_detection, tmp_path / "data")
    return tmp_path / "data"


def command_line(root: Path, narrow_overlay: Path, data: Path, task: str, *more: str) -> list[str]:
    words = ["--config-file", str(root / f"configs/transfer/{task}.yaml"), "--overlay", str(narrow_overlay)]
    words += ["--weights", "scratch", "--seed", "1", "--output", str(data.parent / "trial"), *more]
    return [*words, "TRANSFER.DATA_ROOT", str(data)]


def refused(words: list[str], output: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line a refused trial says."""
    assert call_main(main, words) == EXIT_USAGE
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("error: ") and not captured.out
    assert not output.exists()
    return captured.err


def first_id(data: Path, image_set: str) -> str:
    return (data / f"VOC2007/ImageSets/Main/{image_set}.txt").read_text().split()[0]


def edit(file: Path, pattern: str, replacement: str) -> None:
    text = file.read_text()
    assert re.search(pattern, text)
    file.write_text(re.sub(pattern, replacement, text, count=1))


def xml(change: Callable[[Path], None]) -> Callable[[Path], tuple[str, ...]]:
    """Break the first training image's annotation."""

    def breaks(data: Path) -> tuple[str, ...]:
        file = data / f"VOC2007/Annotations/{first_id(data, 'trainval')}.xml"
        change(file)
        return (str(file),)

    return breaks


def image_missing(image_set: str) -> Callable[[Path], tuple[str, ...]]:
    def breaks(data: Path) -> tuple[str, ...]:
        file = data / f"VOC2007/JPEGImages/{first_id(data, image_set)}.jpg"
        file.unlink()
        return (str(file), f"{image_set}.txt", "does not exist")

    return breaks


def image_unreadable(data: Path) -> tuple[str, ...]:
    file = data / f"VOC2007/JPEGImages/{first_id(data, 'test')}.jpg"
    file.write_bytes(b"<html>404</html>")
    return (str(file), "cannot be read as an image")


def image_of_another_size(data: Path) -> tuple[str, ...]:
    file = data / f"VOC2007/JPEGImages/{first_id(data, 'trainval')}.jpg"
    Image.new("RGB", (17, 19)).save(file)
    return (str(file), "is 17 × 19, its annotation says")


def folder_gone(data: Path) -> tuple[str, ...]:
    (data / "VOC2007/JPEGImages").rename(data / "moved")
    return (str(data / "VOC2007/JPEGImages"), "No such file")


def list_gone(data: Path) -> tuple[str, ...]:
    (data / "VOC2007/ImageSets/Main/trainval.txt").unlink()
    return ("trainval.txt does not exist",)


VOC: dict[str, tuple[Callable[[Path], tuple[str, ...]], tuple[str, ...]]] = {
    "a training image is missing": (image_missing("trainval"), ()),
    "a test image is missing": (image_missing("test"), ()),
    "an image cannot be read": (image_unreadable, ()),
    "an image has another size": (image_of_another_size, ()),
    "all images are missing": (folder_gone, ()),
    "the list is missing": (list_gone, ()),
    "an XML file is missing": (xml(lambda file: file.unlink()), ("does not exist",)),
    "an XML file is cut short": (xml(lambda file: file.write_text(file.read_text()[:-30])), ("not XML", "line ")),
    "an XML file is empty": (xml(lambda file: file.write_text("")), ("not XML",)),
    "an XML file is no text": (xml(lambda file: file.write_bytes(b"\xff\xfe\x00\x01" * 9)), ()),
    "a class nobody knows": (
        xml(lambda file: edit(file, r"<name>\w+</name>", "<name>kat</name>")),
        ("object 1", "'kat'", "did you mean cat?"),
    ),
    "a box outside its image": (
        xml(lambda file: edit(file, r"<xmax>\d+</xmax>", "<xmax>5000</xmax>")),
        ("object 1", "5000", "outside the image"),
    ),
    "a box turned over": (
        xml(lambda file: edit(file, r"<xmin>\d+</xmin>", "<xmin>4999</xmin>")),
        ("object 1", "empty or outside"),
    ),
    "a box that is no number": (
        xml(lambda file: edit(file, r"<ymin>\d+</ymin>", "<ymin>top</ymin>")),
        ("object 1", "bndbox/ymin", "'top'"),
    ),
}


@pytest.mark.parametrize("case", VOC)
def test_broken_voc_is_named(
    root: Path, narrow_overlay: Path, data: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    breaks, more = VOC[case]
    named = (*breaks(data), *more)
    line = refused(command_line(root, narrow_overlay, data, "voc07"), data.parent / "trial", capsys)
    assert all(word in line for word in named), line


def annotations(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Edit COCO's training annotations."""

    def breaks(file: Path) -> None:
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return breaks


def put(key: str, value: Any, index: int = 0, of: str = "annotations") -> Callable[[Path], None]:
    return annotations(lambda content: content[of][index].update({key: value}))


COCO: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "the file is missing": (lambda file: file.unlink(), ("does not exist",)),
    "the JSON is cut short": (lambda file: file.write_text(file.read_text()[:500]), ("not JSON", "line 1")),
    "the JSON is empty": (lambda file: file.write_text(""), ("not JSON",)),
    "the JSON is another": (lambda file: file.write_text("[]"), ("images",)),
    "an annotation of no category": (put("category_id", 99), ("annotations[0]", "no category has the id 99")),
    "a category nobody knows": (put("name", "kat", of="categories"), ("'kat'", "not one of the task's classes")),
    "an annotation of no image": (put("image_id", 12345), ("annotations[0]", "12345")),
    "a box outside its image": (put("bbox", [5000, 1, 9, 9]), ("annotations[0]", "outside its image")),
    "a box with a negative side": (put("bbox", [5, 5, -1, 3]), ("annotations[0]", "negative")),
    "a box of three numbers": (put("bbox", [5, 5, 1]), ("annotations[0]", "four numbers")),
    "a mask is missing": (put("segmentation", []), ("has no segmentation",)),
    "an image is missing": (put("file_name", "gone.jpg", of="images"), ("gone.jpg does not exist",)),
    "an image has another size": (put("width", 999, of="images"), ("its annotation says 999 ×",)),
}


@pytest.mark.parametrize("case", COCO)
def test_broken_coco_is_named(
    root: Path, narrow_overlay: Path, data: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    change, named = COCO[case]
    file = data / "coco/annotations/instances_train2017.json"
    change(file)
    line = refused(command_line(root, narrow_overlay, data, "coco"), data.parent / "trial", capsys)
    assert all(word in line for word in named), line
    if "image" not in case and "mask" not in case:
        assert str(file) in line


def test_images_are_checked_when_a_trial_begins_unless_turned_off(
    root: Path, narrow_overlay: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished trial is not held up by its images; a slow disk may be spared."""
    asked = command_line(root, narrow_overlay, data, "voc07")
    assert call_main(main, asked) == EXIT_OK
    image_unreadable(data)
    assert call_main(main, [*asked, "--resume"]) == EXIT_OK
    capsys.readouterr()
    other = [*asked[:9], str(data.parent / "other"), *asked[10:]]
    assert "cannot be read as an image" in refused(other, data.parent / "other", capsys)
    image_of_another_size(data)
    with pytest.raises(UserError, match=r"its annotation says|cannot be read"):
        main([*other, "TRANSFER.CHECK_IMAGES", "False"])
