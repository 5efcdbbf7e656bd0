"""Scenes of photographs: no photograph on both sides, boxes tight around what is seen, read by every reader."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_transfer.console import call_main
from tools.data import main
from transfer.engine.prepare import TrialRequest, prepare
from transfer.toy.drawing import generator
from transfer.toy.photo_scenes import VISIBLE, Thing, arrange, compose
from transfer.toy.photographs import Deck, content_key, read_photographs, read_pixels
from transfer.toy.scenes import Scene
from transfer.toy.voc_files import inclusive_box

CLASSES = ("cat", "dog", "ship")
NUMBERS = ["--labels", "6", "--scenes", "8", "--test", "6"]


def photograph(seed: int) -> Image.Image:
    """A few smooth coloured blobs."""
    grid = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize((32, 32), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder; a mirrored train photograph is in test, another one twice in train."""
    root = tmp_path_factory.mktemp("cifar")
    for number, name in enumerate(CLASSES):
        for split, count in (("train", 8), ("test", 3)):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                image = photograph(1000 * number + 100 * (split == "test") + index)
                image.save(root / split / name / f"{index:05d}.png")
    mirrored = photograph(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.save(root / "test/cat/00009.png")
    mirrored.save(root / "test/dog/00009.png")
    photograph(1000).save(root / "train/dog/00009.png")
    return root


@pytest.fixture(scope="module")
def scenes(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "a"
    assert call_main(main, ["scenes", str(photographs), str(out), *NUMBERS]) == 0
    return out


def contents(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_the_same_seed_gives_the_same_bytes_in_another_process(
    root: Path, photographs: Path, scenes: Path, tmp_path: Path
) -> None:
    words = [sys.executable, "tools/data.py", "scenes", str(photographs), str(tmp_path / "b"), *NUMBERS]
    subprocess.run(words, cwd=root, env={**os.environ, "PYTHONHASHSEED": "1234"}, check=True)
    assert contents(tmp_path / "b") == contents(scenes)


def test_another_seed_gives_other_scenes_and_a_second_call_none(
    photographs: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_main(main, ["scenes", str(photographs), str(tmp_path / "b"), *NUMBERS, "--seed", "1"]) == 0
    first, second = contents(scenes), contents(tmp_path / "b")
    images = [name for name in first if name.endswith(".jpg")]
    assert len(images) == 8 + 6 + 4 + 16 + 8 + 6 + 4 and all(first[name] != second[name] for name in images)
    capsys.readouterr()
    assert call_main(main, ["scenes", str(photographs), str(scenes), *NUMBERS]) == 0
    assert "exists already" in capsys.readouterr().out and contents(scenes) == first


def test_no_photograph_exact_or_mirrored_is_in_two_parts(photographs: Path, scenes: Path) -> None:
    used: dict[str, list[str]] = json.loads((scenes / "photographs.json").read_text())
    assert sorted(used) == ["heldout", "labels", "more", "test"] and all(used.values())
    assert all(file.startswith("test/") == (part == "test") for part, files in used.items() for file in files)
    keys = {part: {content_key(read_pixels(photographs / file)) for file in files} for part, files in used.items()}
    assert len(set.union(*keys.values())) == sum(map(len, keys.values()))
    assert len(used["labels"]) <= 6 and len(used["more"]) <= 12
    # Those planted are left out: the mirrored ones of test, and the second of the two in train.
    assert read_photographs(photographs).dropped == (2, 1)
    train = {content_key(read_pixels(file)) for file in (photographs / "train").rglob("*.png")}
    assert not keys["test"] & train and len(keys["test"]) <= 9


def some_scenes(photographs: Path, count: int) -> list[tuple[list[Thing], Scene]]:
    """What was pasted, and the scene made of it."""
    pool = [(name, f"train/{name}/{n:05d}.png") for name in CLASSES for n in range(8)]
    made = []
    for index in range(count):
        _, things = arrange(generator(3, "test", index), Deck(photographs, pool, generator(0, "deck", index)))
        scene = compose(generator(3, "test", index), Deck(photographs, pool, generator(0, "deck", index)))
        made.append(([thing for thing in things if thing.name is not None], scene))
    return made


def test_boxes_are_inside_and_tight_and_objects_are_seen(photographs: Path) -> None:
    overlapping = truncated = 0
    for things, scene in some_scenes(photographs, 40):
        assert 1 <= len(scene.objects) <= 4 and [thing.name for thing in things] == [o.name for o in scene.objects]
        width, height = scene.size
        assert 160 <= max(width, height) < 180 and 120 <= min(width, height) < 136
        for thing, found in zip(things, scene.objects, strict=True):
            ys, xs = np.nonzero(thing.visible > 0.5)
            box = found.box
            assert 0 <= box.x0 < box.x1 <= width and 0 <= box.y0 < box.y1 <= height
            # The outline passes between the centre of the last pixel that shows the object and its neighbour's.
            for low, high, pixels in ((box.x0, box.x1, xs), (box.y0, box.y1, ys)):
                assert -0.5 <= low - pixels.min() <= 0.5 and -0.5 <= high - (pixels.max() + 1) <= 0.5
            first, last = inclusive_box(found, width, height)[:2], inclusive_box(found, width, height)[2:]
            assert 1 <= first[0] <= last[0] <= width and 1 <= first[1] <= last[1] <= height
            assert len(xs) > (VISIBLE - 0.05) * thing.whole
            sides = sorted((box.x1 - box.x0, box.y1 - box.y0))
            assert sides[1] < 66
            if not (found.truncated or found.occluded):
                assert sides[1] > 26 and sides[0] > 0.7 * sides[1]
            overlapping += found.occluded
            truncated += found.truncated
    assert overlapping > 10 and truncated > 3


def test_distractors_cover_the_canvas_as_objects_do_and_have_no_box(photographs: Path) -> None:
    pool = [("cat", f"train/cat/{n:05d}.png") for n in range(8)]
    deck = Deck(photographs, pool, generator(0, "deck", 0))
    things = [thing for index in range(30) for thing in arrange(generator(0, "test", index), deck)[1]]
    areas = {kind: [thing.whole for thing in things if (thing.name is None) == kind] for kind in (False, True)}
    assert min(map(len, areas.values())) > 50
    assert 0.8 < np.median(areas[True]) / np.median(areas[False]) < 1.25


HELDOUT = """
_BASE_: {base}
TRANSFER:
  SPLITS:
    heldout: {split}
DATASETS:
  TEST: [heldout]
"""
VOC = "{LAYOUT: voc, FOLDER: VOC2007, IMAGE_SET: heldout}"
COCO = "{LAYOUT: coco, FOLDER: coco/heldout2017, ANNOTATIONS: coco/annotations/instances_heldout2017.json}"


@pytest.mark.parametrize(
    ("task", "heldout", "train", "test"),
    [
        ("voc07", "", 8, 6),
        ("voc0712", "", 8 + 8, 6),
        ("voc0712_trainval", "", 8 + 16, 6),
        ("coco", "", 8, 6),
        ("voc07", VOC, 8, 4),
        ("coco", COCO, 8, 4),
    ],
)
def test_every_task_reads_them_without_naming_a_class(
    root: Path, scenes: Path, tmp_path: Path, task: str, heldout: str, train: int, test: int
) -> None:
    file = root / f"configs/transfer/{task}.yaml"
    if heldout:
        text = HELDOUT.format(base=file, split=heldout)
        file = tmp_path / "heldout.yaml"
        file.write_text(text)
    request = TrialRequest(
        config_file=file,
        overlay=root / "configs/overlays/cpu.yaml",
        overrides=("TRANSFER.DATA_ROOT", str(scenes / "detection")),
        weights="scratch",
        seed=1,
        output=tmp_path / "trial",
    )
    prepared, read = prepare(request)
    assert read.classes == CLASSES and prepared.cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3 and prepared.cfg.TRANSFER.TOY
    assert sum(len(dataset.records) for dataset in read.train) == train and len(read.test.records) == test
    assert all(record.annotations for dataset in (*read.train, read.test) for record in dataset.records)


def test_check_and_pycocotools_read_them(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pycocotools.coco import COCO as Pycocotools

    assert call_main(main, ["check", str(scenes), "--decode", "--workers", "1"]) == 0
    assert "9 splits, nothing wrong" in capsys.readouterr().out
    read = Pycocotools(str(scenes / "detection/coco/annotations/instances_train2017.json"))
    assert [category["name"] for category in read.loadCats(read.getCatIds())] == list(CLASSES)
    for entry in read.loadAnns(read.getAnnIds()):
        mask = read.annToMask(entry)
        ys, xs = np.nonzero(mask)
        x, y, width, height = entry["bbox"]
        assert mask.sum() == pytest.approx(entry["area"], rel=0.1)
        assert (xs.min(), ys.min()) == pytest.approx((x, y), abs=1.5)
        assert (xs.max() + 1, ys.max() + 1) == pytest.approx((x + width, y + height), abs=1.5)


@pytest.mark.parametrize(
    ("change", "words", "named"),
    [
        ("test/ship", [], "ship"),
        ("test", [], "test is not a folder"),
        ("", ["--labels", "9"], "--labels"),
        ("", ["--labels", "5"], "--labels 5"),
        ("", ["--scenes", "1"], "--scenes 1"),
        ("", ["--test", "0"], "--test 0"),
        ("", ["--seed", "-1"], "--seed"),
        ("train/cat/00003.png", [], "00003.png"),
    ],
)
def test_what_cannot_be_made_is_one_line_and_leaves_nothing(
    photographs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: str,
    words: list[str],
    named: str,
) -> None:
    import shutil

    root = tmp_path / "cifar"
    shutil.copytree(photographs, root)
    if change.endswith(".png"):
        (root / change).write_bytes(b"no image")
    elif change:
        shutil.rmtree(root / change)
    assert call_main(main, ["scenes", str(root), str(tmp_path / "out"), *NUMBERS, *words]) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["cifar"]


def test_another_set_is_not_overwritten(photographs: Path, scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(scenes)
    assert call_main(main, ["scenes", str(photographs), str(scenes), *NUMBERS, "--seed", "2"]) == 2
    assert "seed" in capsys.readouterr().err and contents(scenes) == before
