"""The command line of the data sets."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from ssl_transfer.console import call_main
from tools.data import main

SMALL = ["--photos", "8", "--voc2007", "6", "3", "--voc2012", "3", "3", "--coco", "5", "5"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "toy"
    assert call_main(main, ["toy", str(out), "--seed", "3", *SMALL]) == 0
    return out


@pytest.fixture
def toy(drawn: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    shutil.copytree(drawn, tmp_path / "toy")
    return tmp_path / "toy"


def test_toy_reports_the_sets_and_a_second_run_draws_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["toy", str(tmp_path / "out"), *SMALL]
    assert call_main(main, command) == 0
    first = capsys.readouterr().out
    assert first.startswith("drew the toy sets, seed 0") and "6 trainval, 3 test" in first
    assert call_main(main, command) == 0
    assert capsys.readouterr().out.startswith("exists already: the toy sets, seed 0")
    record = json.loads((tmp_path / "out" / "toy.json").read_text())
    assert (record["seed"], record["voc2007"], record["classes"]) == (0, [6, 3], ["bus", "cat", "sheep"])


def test_the_options_reach_the_world(drawn: Path) -> None:
    assert json.loads((drawn / "toy.json").read_text())["seed"] == 3
    assert len(list((drawn / "photos" / "train").rglob("*.jpg"))) == 8
    assert len(list((drawn / "detection" / "VOC2012" / "JPEGImages").iterdir())) == 6
    assert len(list((drawn / "detection" / "coco" / "train2017").iterdir())) == 5


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "VERB"),
        (["draw", "x"], "invalid choice: 'draw'"),
        (["toy"], "OUT"),
        (["toy", "x", "--sed", "1"], "--sed"),
        (["toy", "x", "--photos", "many"], "invalid int value: 'many'"),
        (["toy", "x", "--voc2007", "9"], "--voc2007"),
        (["toy", "x", "--coco", "1", "1"], "--coco: 1 1 is too few"),
        (["check", "no/such/folder"], "no/such/folder is not a folder"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(
    argv: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call_main(main, argv) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_another_seed_in_its_place_is_refused(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call_main(main, ["toy", str(drawn), *SMALL]) == 2
    assert "holds a toy set of another seed" in capsys.readouterr().err


@pytest.mark.parametrize("below", ["", "detection"])
def test_check_counts_images_and_objects(drawn: Path, below: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call_main(main, ["check", str(drawn / below)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.pop() == "9 splits, nothing wrong"
    assert len(lines) == 9 and all(line.startswith("ok ") for line in lines)
    trainval = next(line for line in lines if "voc_2007_trainval" in line)
    assert "6 images" in trainval and "difficult" in trainval and "published with 5011" in trainval
    assert sum("1 crowd" in line and "1 image(s) without any" in line for line in lines) == 2


def test_check_published_fails_on_a_part(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call_main(main, ["check", str(drawn), "--published"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines.pop() == "9 splits, 9 broken, 9 faults"
    assert len(lines) == 9 and all(line.startswith("broken") for line in lines)


def test_check_names_what_is_broken_and_reads_the_rest(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voc, coco = toy / "detection" / "VOC2007", toy / "detection" / "coco"
    first = (voc / "ImageSets" / "Main" / "test.txt").read_text().split()[0]
    (voc / "JPEGImages" / f"{first}.jpg").unlink()
    file = coco / "annotations" / "instances_val2017.json"
    file.write_text(file.read_text()[:100])
    assert call_main(main, ["check", str(toy)]) == 1
    broken = [line for line in capsys.readouterr().out.splitlines() if line.startswith("broken")]
    assert len(broken) == 2
    assert "voc_2007_test" in broken[0] and f"{first}.jpg does not exist" in broken[0]
    assert "coco_2017_val" in broken[1] and "instances_val2017.json" in broken[1]


def test_check_needs_a_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call_main(main, ["check", str(tmp_path)]) == 2
    assert "VOC2007/ImageSets/Main" in capsys.readouterr().err


def test_check_reads_real_sets_with_the_benchmarks_classes(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call_main(main, ["check", str(real_data / "detection")]) == 0
    assert "834 objects" in capsys.readouterr().out


def test_check_lists_every_fault_of_every_split(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voc, coco = toy / "detection" / "VOC2012", toy / "detection" / "coco"
    ids = (voc / "ImageSets" / "Main" / "train.txt").read_text().split()
    first, second, third = (voc / "Annotations" / f"{name}.xml" for name in ids)
    first.write_text(first.read_text()[:-20])
    second.write_text(re.sub(r"<name>\w+</name>", "<name>zebra</name>", second.read_text(), count=1))
    third.write_text(re.sub(r"<xmax>\d+</xmax>", "<xmax>9999</xmax>", third.read_text(), count=1))
    file = coco / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    for entry in content["annotations"][:2]:
        entry["bbox"][0] = 9999
    (coco / "train2017" / content["images"][0]["file_name"]).write_bytes(b"not an image")
    file.write_text(json.dumps(content))
    assert call_main(main, ["check", str(toy)]) == 1
    out = capsys.readouterr().out
    broken = [line.split(maxsplit=2) for line in out.splitlines() if line.startswith("broken")]
    told = {name: [fault for _, split, fault in broken if split == name] for _, name, _ in broken}
    # The 2012 trainval list holds the same three images.
    assert set(told) == {"voc_2012_train", "voc_2012_trainval", "coco_2017_train"}
    xml, unknown, outside = told["voc_2012_train"]
    assert "not XML" in xml and "'zebra' is not one of the task's" in unknown and "outside the image" in outside
    assert [first.name in xml, second.name in unknown, third.name in outside] == [True] * 3
    assert sum("outside its image" in fault for fault in told["coco_2017_train"]) == 2
    assert sum("cannot be read as an image" in fault for fault in told["coco_2017_train"]) == 1
    assert out.splitlines()[-1] == "9 splits, 3 broken, 9 faults"


def test_check_decode_finds_a_damaged_file(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = sorted((toy / "detection" / "VOC2007" / "JPEGImages").iterdir())[0]
    with Image.open(image) as pixels:
        exif = pixels.getexif()
        exif[0x0131] = "a camera"  # without EXIF data Pillow decodes a PNG to find some
        pixels.save(image, "PNG", exif=exif)
    content = bytearray(image.read_bytes())
    content[len(content) // 2] ^= 255
    image.write_bytes(content)
    assert call_main(main, ["check", str(toy)]) == 0
    assert call_main(main, ["check", str(toy), "--decode", "--workers", "2"]) == 1
    assert f"{image.name} cannot be read as an image" in capsys.readouterr().out


def test_check_of_a_task_reads_only_its_splits(
    root: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = tmp_path / "own.yaml"
    task.write_text(
        "TRANSFER:\n  TASK: own\n  CLASSES: [bus, cat, sheep]\n  SPLITS:\n"
        "    mine: {LAYOUT: voc, FOLDER: VOC2012, IMAGE_SET: train, COUNT: 3}\n"
        "    yours: {LAYOUT: voc, FOLDER: VOC2007, IMAGE_SET: test}\n"
        "DATASETS: {TRAIN: [mine], TEST: [yours]}\n"
    )
    assert call_main(main, ["check", "--config-file", str(task), str(drawn)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["ok", "mine"], ["ok", "yours"]]
    assert "published" not in lines[0] and lines[2] == "2 splits, nothing wrong"
    # A task of the benchmarks is held against their counts and their 20 classes.
    assert call_main(main, ["check", "--config-file", str(root / "configs/transfer/voc0712.yaml"), str(drawn)]) == 1
    out = capsys.readouterr().out
    assert [line.split()[1] for line in out.splitlines()[:-1]] == [
        "voc_2007_trainval",
        "voc_2012_train",
        "voc_2007_test",
    ]
    assert "published with 5011" in out
    task.write_text(task.read_text().replace("COUNT: 3", "COUNT: 4"))
    assert call_main(main, ["check", "--config-file", str(task), str(drawn)]) == 1
    assert "mine has 3 images, published with 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["check"], "give ROOT, --config-file F, or both"),
        (["check", "--config-file", "none.yaml"], "config file none.yaml does not exist"),
        (["check", "x", "--workers", "0"], "'0' is not a whole number from 1"),
    ],
)
def test_wrong_options_of_check_are_one_line(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call_main(main, argv) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
