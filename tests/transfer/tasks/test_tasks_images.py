"""The images themselves: there, readable, of the size their annotation says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_transfer.errors import UserError
from transfer.tasks.datasets import DatasetDict, Split
from transfer.tasks.images import abbreviate_faults, image_faults
from transfer.tasks.reading import ORIENTATION
from transfer.tasks.task import Dataset, Task, require_images


def draw(file: Path, size: tuple[int, int] = (40, 30), orientation: int = 1) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(noise).save(file, exif=exif)


def record(file: Path, width: int = 40, height: int = 30) -> DatasetDict:
    return DatasetDict(str(file), file.stem, width, height)


@pytest.mark.parametrize("decode", [False, True])
def test_each_fault_is_a_line_in_the_records_order(tmp_path: Path, decode: bool) -> None:
    names = ["good.jpg", "small.jpg", "text.jpg", "empty.jpg", "missing.jpg", "good.png"]
    for name in ("good.jpg", "small.jpg", "good.png"):
        draw(tmp_path / name, (20, 30) if name == "small.jpg" else (40, 30))
    (tmp_path / "text.jpg").write_text("<html>")
    (tmp_path / "empty.jpg").write_bytes(b"")
    found = list(image_faults([record(tmp_path / name) for name in names], decode, workers=2))
    assert [Path(line.split()[0]).name for line in found] == names[1:5]
    assert found[0].startswith(f"{tmp_path}/small.jpg is 20 × 30, its annotation says 40 × 30; ")
    assert "cannot be read as an image" in found[1] and "cannot be read as an image" in found[2]
    assert "does not exist" in found[3]


def test_a_file_cut_short_is_found_without_decoding_all(tmp_path: Path) -> None:
    draw(tmp_path / "cut.jpg")
    content = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    for decode in (False, True):
        (fault,) = image_faults([record(tmp_path / "cut.jpg")], decode=decode, workers=1)
        assert "cut.jpg cannot be read as an image" in fault and "truncated" in fault


def test_bytes_after_the_end_do_no_harm(tmp_path: Path) -> None:
    draw(tmp_path / "long.jpg")
    with (tmp_path / "long.jpg").open("ab") as stream:
        stream.write(bytes(9000))
    assert list(image_faults([record(tmp_path / "long.jpg")])) == []


def test_damage_within_the_pixels_is_found_by_decoding(tmp_path: Path) -> None:
    draw(tmp_path / "spoilt.png")
    content = bytearray((tmp_path / "spoilt.png").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "spoilt.png").write_bytes(content)
    assert list(image_faults([record(tmp_path / "spoilt.png")])) == []
    (fault,) = image_faults([record(tmp_path / "spoilt.png")], decode=True, workers=1)
    assert "spoilt.png cannot be read as an image" in fault


@pytest.mark.parametrize(("orientation", "size"), [(1, (40, 30)), (3, (40, 30)), (6, (30, 40)), (8, (30, 40))])
def test_the_size_is_that_after_the_rotation_by_exif_as_in_detectron2(
    tmp_path: Path, orientation: int, size: tuple[int, int]
) -> None:
    from detectron2.data.detection_utils import read_image

    file = tmp_path / "turned.jpg"
    draw(file, orientation=orientation)
    assert read_image(str(file), "RGB").shape[:2] == size[::-1]
    assert list(image_faults([record(file, *size)])) == []
    assert len(list(image_faults([record(file, *size[::-1])]))) == 1


def test_training_images_of_a_task_are_checked_first(tmp_path: Path) -> None:
    draw(tmp_path / "a.jpg")
    split = Split("own", "voc", tmp_path)

    def task(train: str, test: str) -> Task:
        sets = [Dataset(split, [record(tmp_path / name)], ("cat",)) for name in (train, test)]
        return Task("own", (sets[0],), sets[1])

    require_images(task("a.jpg", "a.jpg"))
    for bad in (task("a.jpg", "b.jpg"), task("b.jpg", "a.jpg")):
        with pytest.raises(UserError, match=r"b\.jpg does not exist"):
            require_images(bad)


def test_many_faults_are_abbreviated() -> None:
    assert abbreviate_faults(["a", "b", "c"], 2) == ["a", "b", "and 1 more"]
    assert abbreviate_faults(["a", "b"], 2) == ["a", "b"]


def test_the_small_real_images_are_as_their_annotations_say(real_data: Path) -> None:
    from transfer.tasks.task import load_task

    for train, test in (("voc_2007_trainval", "voc_2007_test"), ("coco_2017_train", "coco_2017_val")):
        require_images(load_task("own", [train], test, real_data / "detection", check_counts=False))
