"""`data.py split` and `data.py import yolo`: what they write is what `data.py check` and a trial read."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ssl_transfer.console import call_main
from ssl_transfer.errors import EXIT_OK, EXIT_USAGE
from tools.data import main
from transfer.tasks.datasets import Split
from transfer.tasks.task import Dataset, read_split

WIDTH, HEIGHT = 80, 60
Capture = pytest.CaptureFixture[str]


def picture(file: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 60)).save(file)


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def voc_set(folder: Path, ids: list[str], images: str = "images", annotations: str = "annotations") -> None:
    box = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>30</xmax><ymax>30</ymax></bndbox>"
    for name in ids:
        picture(folder / images / f"{name}.jpg")
        write(
            folder / annotations / f"{name}.xml",
            f"<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
            f"<object><name>ship</name>{box}</object></annotation>",
        )


def lists(folder: Path) -> dict[str, list[str]]:
    return {file.stem: file.read_text().splitlines() for file in sorted((folder / "ImageSets/Main").glob("*.txt"))}


def refused(capsys: Capture, *words: object) -> str:
    assert call_main(main, [str(word) for word in words]) == EXIT_USAGE
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def done(capsys: Capture, *words: object) -> str:
    assert call_main(main, [str(word) for word in words]) == EXIT_OK
    return capsys.readouterr().out


# ---- split


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("images", "annotations"), [("images", "annotations"), ("JPEGImages", "Annotations"), ("", "")]
)
def test_split_lists_each_image_once_by_its_id_and_the_seed(
    tmp_path: Path, capsys: Capture, seed: int, images: str, annotations: str
) -> None:
    rng = random.Random(seed)
    ids = [f"{rng.choice(['', 'a b/', 'c/'])}IMG {n} {rng.choice(['(1)', '1', '0', 'é'])}" for n in range(20)]
    voc_set(tmp_path, ids, images, annotations)
    out = done(capsys, "split", tmp_path, "--val", "0.2", "--seed", seed)
    found = lists(tmp_path)
    assert (len(found["train"]), len(found["val"])) == (16, 4)
    assert sorted(found["train"] + found["val"]) == sorted(ids)
    assert "16 images" in out and "4 images" in out
    read = read_split(Split("own", "voc", tmp_path, "train"), ["ship"])
    assert [record.image_id for record in read.records] == found["train"]
    assert done(capsys, "split", tmp_path, "--val", "0.2", "--seed", seed) == out  # the same lists are no conflict
    assert "train.txt exists" in refused(capsys, "split", tmp_path, "--val", "0.5", "--seed", seed)
    assert lists(tmp_path) == found
    voc_set(tmp_path, ["new"], images, annotations)  # the others stay where they are
    for file in (tmp_path / "ImageSets/Main").iterdir():
        file.unlink()
    done(capsys, "split", tmp_path, "--val", "0.2", "--seed", seed)
    assert len(set(found["val"]) - set(lists(tmp_path)["val"])) <= 1


def test_split_says_what_it_leaves_out_and_refuses_what_no_list_can_hold(tmp_path: Path, capsys: Capture) -> None:
    voc_set(tmp_path, ["a", "b", "c"])
    picture(tmp_path / "images/lonely.png")
    write(tmp_path / "annotations/nothing.xml", "<annotation/>")
    write(tmp_path / "annotations/._a.xml", "")
    out = done(capsys, "split", tmp_path, "--val", "0.34")
    assert "lonely.png" in out and "nothing.xml" in out and "._a" not in out
    assert {name: len(ids) for name, ids in lists(tmp_path).items()} == {"train": 2, "val": 1}
    voc_set(tmp_path, ["new\nline"])
    assert "rename" in refused(capsys, "split", tmp_path)


@pytest.mark.parametrize(("share", "expected"), [("0", {"train": 3}), ("0.01", {"train": 2, "val": 1})])
def test_split_leaves_no_part_empty(tmp_path: Path, capsys: Capture, share: str, expected: dict[str, int]) -> None:
    voc_set(tmp_path, ["a", "b", "c"])
    done(capsys, "split", tmp_path, "--val", share)
    assert {name: len(ids) for name, ids in lists(tmp_path).items()} == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [(["none"], "none does not exist"), (["."], "no XML files"), ([".", "--val", "1"], "--val"),
     ([".", "--val", "nan"], "--val"), (["bad.json"], "images"), (["twice.json"], "images[1]"),
     (["alone.json"], "annotations[0]")],
)  # fmt: skip
def test_split_refuses_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if words[0] != ".":
        write(tmp_path / "bad.json", "[]")
        write(tmp_path / "twice.json", '{"images": [{"id": 1}, {"id": 1}], "annotations": []}')
        write(tmp_path / "alone.json", '{"images": [{"id": 1}, {"id": 2}], "annotations": [{"image_id": 3}]}')
    before = sorted(tmp_path.rglob("*"))
    assert said in refused(capsys, "split", *words)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("spelling", [int, str, float])
def test_split_divides_a_coco_file_and_keeps_the_rest(
    tmp_path: Path, capsys: Capture, spelling: Callable[[int], Any]
) -> None:
    file = tmp_path / "annotations/instances_default.json"
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 9, "height": 9} for n in range(1, 11)]
    annotations = [{"id": n, "image_id": spelling(1 + n % 10), "bbox": [0, 0, 2, 2]} for n in range(40)]
    content = {"info": {"year": "2024"}, "images": images, "annotations": annotations, "categories": [{"id": 3}]}
    write(file, json.dumps(content))
    out = done(capsys, "split", tmp_path, "--val", "0.3", "--seed", "7")
    parts = {
        name: json.loads(file.with_name(f"instances_default_{name}.json").read_text()) for name in ("train", "val")
    }
    assert {name: len(part["images"]) for name, part in parts.items()} == {"train": 7, "val": 3}
    assert "7 images, 28 objects" in out and "3 images, 12 objects" in out
    for part in parts.values():
        assert part["info"] == content["info"] and part["categories"] == content["categories"]
        assert {int(entry["image_id"]) for entry in part["annotations"]} == {image["id"] for image in part["images"]}
    assert sorted(image["id"] for part in parts.values() for image in part["images"]) == list(range(1, 11))
    assert "give one of" in refused(capsys, "split", tmp_path)  # there are three now
    assert "exists with other content" in refused(capsys, "split", file, "--seed", "8")


# ---- import yolo

LAYOUTS = ("images/{}", "{}/images")
YAML = {
    "list": "names: [yes, 'hot dog', 2]\nnc: 3\n",
    "dict": "names:\n  0: yes\n  1: hot dog\n  2: 2\n",
    "roboflow": "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 3\n"
    "names: ['yes', 'hot dog', '2']\n",
    "ultralytics": "path: ../datasets/mine # root\ntrain: images/train\nval: images/val\ntest:\n"
    "names: {0: yes, 1: hot dog, 2: 2}\n",
}
NAMES = ("yes", "hot dog", "2")


def yolo_set(folder: Path, rng: random.Random, layout: str, splits: tuple[str, ...]) -> dict[str, list[list[float]]]:
    """A set with random boxes; returns each image's boxes in pixels and classes, by its path in the set."""
    truth: dict[str, list[list[float]]] = {}
    for split in splits:
        for number in range(3):
            image = f"{layout.format(split)}/{split} {number}.{rng.choice(['jpg', 'JPG', 'png'])}"
            picture(folder / image)
            lines, truth[image] = [], []
            for _ in range(rng.randrange(4)):
                label, width, height = rng.randrange(3), rng.uniform(0.1, 0.5), rng.uniform(0.1, 0.5)
                x, y = rng.uniform(width / 2, 1 - width / 2), rng.uniform(height / 2, 1 - height / 2)
                lines.append(f"{label} {x:.6f} {y:.6f} {width:.6f} {height:.6f}")
                corner = [(x - width / 2) * WIDTH, (y - height / 2) * HEIGHT]
                truth[image].append([label, *corner, width * WIDTH, height * HEIGHT])
            label_file = folder / image.replace("images", "labels")
            if lines or rng.random() < 0.5:
                write(label_file.with_suffix(".txt"), "\n".join(lines) + "\n")
    if not any(truth.values()):
        write(label_file.with_suffix(".txt"), "0 0.5 0.5 0.5 0.5\n")
        truth[image].append([0, WIDTH / 4, HEIGHT / 4, WIDTH / 2, HEIGHT / 2])
    return truth


def read(folder: Path, file: Path) -> Dataset:
    return read_split(Split("own", "coco", folder, annotations=file), NAMES)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("text", "layout", "splits"),
    [
        (YAML["list"], LAYOUTS[0], ("train", "val", "test")),
        (YAML["dict"], LAYOUTS[1], ("train", "valid")),
        (YAML["roboflow"], LAYOUTS[1], ("train", "valid")),
        (YAML["ultralytics"], LAYOUTS[0], ("train", "val")),
        ("", LAYOUTS[0], ("train", "val")),
    ],
)
def test_import_yolo_gives_the_same_boxes_as_coco_files(
    tmp_path: Path, capsys: Capture, seed: int, text: str, layout: str, splits: tuple[str, ...]
) -> None:
    source, out = tmp_path / "s e t", tmp_path / "out"
    truth = yolo_set(source, random.Random(seed), layout, splits)
    write(source / ("data.yaml" if text else "classes.txt"), text or "\n".join(NAMES) + "\n")
    done(capsys, "import", "yolo", source, out)
    assert len(list(out.iterdir())) == len(splits)
    for split in splits:
        dataset = read(source, out / f"instances_{split.replace('valid', 'val')}.json")
        assert dataset.classes == NAMES and not dataset.adjustments
        mine = {name: boxes for name, boxes in truth.items() if Path(name).stem.startswith(split)}
        found = {str(Path(record.file).relative_to(source)): record.annotations for record in dataset.records}
        assert found.keys() == mine.keys()
        for name, boxes in mine.items():
            assert [(a.label, *a.box) for a in found[name]] == [pytest.approx(box, abs=2e-3) for box in boxes]
    assert done(capsys, "import", "yolo", source, out)  # again: the same files


def test_import_yolo_reads_a_set_without_splits_to_be_divided(tmp_path: Path, capsys: Capture) -> None:
    for number in range(5):
        picture(tmp_path / f"{number}.jpg")
        write(tmp_path / f"{number}.txt", "1 .5 .5 .2 .2\n")
    write(tmp_path / "classes.txt", "\n".join(NAMES))
    done(capsys, "import", "yolo", tmp_path, tmp_path / "coco")
    done(capsys, "split", tmp_path / "coco/instances.json")
    counts = [len(read(tmp_path, tmp_path / f"coco/instances_{part}.json").records) for part in ("train", "val")]
    assert counts == [4, 1]


def one_image(folder: Path, line: str, more: str = "") -> Path:
    picture(folder / "images/a.jpg")
    write(folder / "labels/a.txt", line)
    write(folder / "data.yaml", YAML["list"] + more)
    return folder


@pytest.mark.parametrize("seed", range(5))
def test_polygons_become_masks_of_their_area(tmp_path: Path, capsys: Capture, seed: int) -> None:
    rng = random.Random(seed)
    left, top, right, bottom = (rng.uniform(a, b) for a, b in ((0, 0.3), (0, 0.3), (0.5, 1), (0.5, 1)))
    points = [left, top, right, top, right, bottom, left, bottom]
    folder = one_image(tmp_path, "0 " + " ".join(f"{p:.6f}" for p in points) + "\n1 0.5 0.5 0.25 0.5\n")
    out = done(capsys, "import", "yolo", folder, tmp_path / "out")
    assert "1 polygons" in out and "1 boxes" in out
    first, second = json.loads((tmp_path / "out/instances.json").read_text())["annotations"]
    width, height = (right - left) * WIDTH, (bottom - top) * HEIGHT
    assert first["bbox"] == pytest.approx([left * WIDTH, top * HEIGHT, width, height], abs=2e-3)
    assert first["area"] == pytest.approx(width * height, abs=0.5) and len(first["segmentation"][0]) == 8
    assert "segmentation" not in second and second["area"] == pytest.approx(0.125 * WIDTH * HEIGHT)
    assert len(read(folder, tmp_path / "out/instances.json").records[0].annotations) == 2


def test_keypoints_are_no_polygon_and_a_turned_photograph_has_its_shown_size(tmp_path: Path, capsys: Capture) -> None:
    folder = one_image(tmp_path, "0 .5 .5 .5 .5 .4 .4 2 .6 .6 2\n", "kpt_shape: [2, 3]\n")
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images/a.jpg", exif=exif)
    done(capsys, "import", "yolo", folder / "data.yaml", tmp_path / "out")
    content = json.loads((tmp_path / "out/instances.json").read_text())
    assert (content["images"][0]["width"], content["images"][0]["height"]) == (HEIGHT, WIDTH)
    assert content["annotations"][0]["bbox"] == [HEIGHT / 4, WIDTH / 4, HEIGHT / 2, WIDTH / 2]


@pytest.mark.parametrize(
    ("line", "said"),
    [("0 0.1 0.1 0.2041 0.204", "clipped"), ("0 .5 .5 .2 .2\n0 .5 .5 .2 .2", "1 lines twice"),
     ("", "1 images without objects"), ("0.0 5e-1 .5 .2 .2 \n\n", "1 boxes"), ("\ufeff0 .5 .5 .2 .2\r\n", "1 boxes")],
)  # fmt: skip
def test_what_was_read_otherwise_is_said(tmp_path: Path, capsys: Capture, line: str, said: str) -> None:
    folder = one_image(tmp_path, line)
    write(folder / "images/labels/x", "")
    picture(folder / "images/b.jpg")
    write(folder / "labels/b.txt", "0 .5 .5 .2 .2\n")
    write(folder / "labels/orphan.txt", "0 .5 .5 .2 .2\n")
    line_out = done(capsys, "import", "yolo", folder, tmp_path / "out")
    assert said.replace("1 boxes", "2 boxes") in line_out and "1 label files without an image" in line_out
    boxes = [a.box for record in read(folder, tmp_path / "out/instances.json").records for a in record.annotations]
    assert all(x >= 0 and y >= 0 and x + w <= WIDTH and y + h <= HEIGHT for x, y, w, h in boxes)


@pytest.mark.parametrize(
    "line",
    ["3 .5 .5 .2 .2", "-1 .5 .5 .2 .2", "0.5 .5 .5 .2 .2", "ship .5 .5 .2 .2", "0 .5 .5 .2", "0 .5 .5 .2 .2 .9",
     "0 nan .5 .2 .2", "0 .5 inf .2 .2", "0 50 30 20 20", "0 .5 .5 .2 0", "0 .5 .5 -.2 .2", "0 .9 .5 .3 .2",
     "0 .1 .1 .5 .5 .9 .9", "0 .1 .1 .9 .1 .5", "0,0.5,0.5,0.2,0.2", "0 .1 .1 .9 .1 .5 1e9"],
)  # fmt: skip
def test_a_bad_line_is_named_and_nothing_is_written(tmp_path: Path, capsys: Capture, line: str) -> None:
    folder = one_image(tmp_path, f"0 .5 .5 .2 .2\n{line}\n")
    assert re.search(r"labels/a\.txt, line 2: ", refused(capsys, "import", "yolo", folder, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "data.yaml").unlink(), "names no classes"),
        (lambda f: write(f / "data.yaml", "names: [a, a]\n"), "'a' twice"),
        (lambda f: write(f / "data.yaml", "names: {x: a}\n"), "numbers as keys"),
        (lambda f: write(f / "data.yaml", "names: ship\n"), "list of the classes"),
        (lambda f: write(f / "data.yaml", "names: [a\n"), "not YAML"),
        (lambda f: write(f / "data.yaml", "names: " + "[" * 5000), "not YAML"),
        (lambda f: write(f / "data.yaml", YAML["list"] + "train: img/train\n"), "img/train does not exist"),
        (lambda f: (f / "labels/a.txt").unlink(), "label file"),
        (lambda f: (f / "images/a.jpg").write_bytes(b"x"), "images/a.jpg"),
        (lambda f: (f / "images/a.jpg").unlink(), "no images"),
    ],
)
def test_a_set_that_cannot_be_converted_is_refused_in_one_line(
    tmp_path: Path, capsys: Capture, change: Callable[[Path], object], said: str
) -> None:
    folder = one_image(tmp_path, "0 .5 .5 .2 .2\n")
    change(folder)
    assert said in refused(capsys, "import", "yolo", folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "does not exist" in refused(capsys, "import", "yolo", folder / "nowhere", tmp_path / "out")


def test_import_yolo_overwrites_no_other_file(tmp_path: Path, capsys: Capture) -> None:
    folder = one_image(tmp_path, "0 .5 .5 .2 .2\n")
    write(tmp_path / "out/instances.json", "{}")
    assert "instances.json exists" in refused(capsys, "import", "yolo", folder, tmp_path / "out")
    assert (tmp_path / "out/instances.json").read_text() == "{}"


def test_changed_label_files_and_descriptions_are_read_or_refused_in_one_line(tmp_path: Path, capsys: Capture) -> None:
    """Bytes of a label file or of data.yaml replaced, left out or doubled: files that check accepts, or exit 2."""
    folder, out = one_image(tmp_path, ""), tmp_path / "out"
    label, description = folder / "labels/a.txt", folder / "data.yaml"
    text = {label: b"0 0.5 0.5 0.2 0.2\n1 .1 .1 .9 .1 .5 .9\n", description: YAML["ultralytics"].encode()}
    text[description] = text[description].replace(b"images/train", b"images").replace(b"val: images/val\n", b"")
    outcomes = {EXIT_OK: 0, EXIT_USAGE: 0}
    for seed in range(150):
        rng = random.Random(seed)
        for file, content in text.items():
            file.write_bytes(content)
        changed = rng.choice([label, description])
        content, (start, end) = text[changed], sorted(rng.sample(range(len(text[changed])), 2))
        piece = rng.choice(
            [b"", content[start:end] * 2, rng.randbytes(3), b"nan", b"-", b"[", b"\xff", b": ", b"1e400"]
        )
        changed.write_bytes(content[:start] + piece + content[min(end, start + 3) :])
        code = call_main(main, ["import", "yolo", str(folder), str(out)])
        captured = capsys.readouterr()
        assert captured.err.count("\n") == (code != EXIT_OK), seed
        outcomes[code] += 1
        for file in sorted(out.iterdir()) if code == EXIT_OK else ():
            categories = [one["name"] for one in json.loads(file.read_text())["categories"]]
            read_split(Split("own", "coco", folder, annotations=file), categories)
            file.unlink()
    assert min(outcomes.values()) > 20
