"""docs/guides/own_labels.md, run word by word on folders as label tools write them: what stands there works."""

from __future__ import annotations

import json
import random
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image, ImageDraw

from ssl_transfer.console import call_main
from ssl_transfer.errors import EXIT_OK
from tests.integration.commands import run_script
from tests.integration.test_own_data_page import TINY, blocks
from tools import data, launch

PAGE = Path(__file__).resolve().parents[2] / "docs/guides/own_labels.md"
TASKS = ("roboflow", "cvat", "flat", "yolo")
CLASSES = ("ship", "plane")
WIDTH, HEIGHT = 96, 72
Scene = list[tuple[int, tuple[int, int, int, int]]]


def scene(file: Path, rng: random.Random) -> Scene:
    """Draw one or two objects; returns (class, (x, y, width, height) in pixels)."""
    image = Image.new("RGB", (WIDTH, HEIGHT), tuple(rng.randrange(60, 200) for _ in range(3)))
    found: Scene = []
    for label in rng.sample(range(2), rng.randint(1, 2)):
        width, height = rng.randint(20, 40), rng.randint(20, 40)
        x, y = rng.randrange(WIDTH - width), rng.randrange(HEIGHT - height)
        ImageDraw.Draw(image).rectangle((x, y, x + width, y + height), fill=(250 * label, 250, 40))
        found.append((label, (x, y, width, height)))
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)
    return found


def write(file: Path, content: str | dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))


def roboflow(folder: Path, rng: random.Random) -> None:
    """A folder a split: `info` of texts, a first category without objects, all ids from 0, no polygons."""
    for split, count in (("train", 5), ("valid", 3)):
        images: list[dict[str, Any]] = []
        objects: list[dict[str, Any]] = []
        for number in range(count):
            name = f"IMG_{number}_jpg.rf.{rng.randbytes(8).hex()}.jpg"
            drawn = scene(folder / split / name, rng)
            date = "2024-01-05T10:10:10+00:00"
            images.append({"id": number, "license": 1, "file_name": name, "height": HEIGHT, "width": WIDTH})
            images[-1] |= {"date_captured": date, "extra": {"name": f"IMG {number}.jpg"}}
            for label, (x, y, w, h) in drawn:
                entry = {"id": len(objects), "image_id": number, "category_id": label + 1, "bbox": [x, y, w, h]}
                objects.append({**entry, "area": w * h, "segmentation": [], "iscrowd": 0})
        categories = [{"id": 0, "name": "objects", "supercategory": "none"}]
        categories += [{"id": n + 1, "name": name, "supercategory": "objects"} for n, name in enumerate(CLASSES)]
        info = {"year": "2024", "version": "1", "description": "Exported from a tool", "contributor": "", "url": ""}
        licenses = [{"id": 1, "url": "", "name": "CC BY 4.0"}]
        content = {"info": info, "licenses": licenses, "categories": categories, "images": images}
        write(folder / split / "_annotations.coco.json", {**content, "annotations": objects})


def cvat(folder: Path, rng: random.Random) -> None:
    """One file: empty texts for numbers, `date_captured` 0, polygons, attributes."""
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for number in range(1, 8):
        drawn = scene(folder / f"images/frame {number:03d}.PNG", rng)
        images.append({"id": number, "width": WIDTH, "height": HEIGHT, "file_name": f"frame {number:03d}.PNG"})
        images[-1] |= {"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0}
        for label, (x, y, w, h) in drawn:
            polygon = [float(side) for side in (x, y, x + w, y, x + w, y + h, x, y + h)]
            entry = {"id": len(objects) + 1, "image_id": number, "category_id": label + 1, "segmentation": [polygon]}
            entry |= {"area": float(w * h), "bbox": [float(x), float(y), float(w), float(h)], "iscrowd": 0}
            objects.append({**entry, "attributes": {"occluded": False}})
    info = dict.fromkeys(("contributor", "date_created", "description", "url", "version", "year"), "")
    categories = [{"id": n + 1, "name": name, "supercategory": ""} for n, name in enumerate(CLASSES)]
    content = {"licenses": [{"name": "", "id": 0, "url": ""}], "info": info, "categories": categories}
    write(folder / "annotations/instances_default.json", {**content, "images": images, "annotations": objects})


def flat(folder: Path, rng: random.Random) -> None:
    """Two folders; spaces in names, several endings, no `difficult`, a box two pixels outside, no size."""
    for number in range(7):
        name = rng.choice(["", "day 2/"]) + f"Photo {number} ({rng.randrange(9)})"
        drawn = scene(folder / f"images/{name}.{rng.choice(['jpg', 'JPG', 'jpeg', 'png'])}", rng)
        objects = "".join(
            f"<object><name>{CLASSES[label]}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
            f"<xmax>{x + w + 0.5}</xmax><ymax>{HEIGHT + 2 if number == 1 else y + h}</ymax></bndbox></object>"
            for label, (x, y, w, h) in drawn
        )
        size = "" if number == 2 else f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
        write(folder / f"annotations/{name}.xml", f"<annotation><folder>x</folder>{size}{objects}</annotation>")


def yolo(folder: Path, rng: random.Random) -> None:
    """Roboflow's folders and paths; one image without objects."""
    for split, count in (("train", 5), ("valid", 3)):
        for number in range(count):
            drawn = scene(folder / f"{split}/images/{number}.jpg", rng)
            rows = [(n, (x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT) for n, (x, y, w, h) in drawn]
            text = "" if split == "train" and number == 4 else "\n".join(" ".join(map(str, row)) for row in rows)
            write(folder / f"{split}/labels/{number}.txt", text)
    write(folder / "data.yaml", "train: ../train/images\nval: ../valid/images\n\nnc: 2\nnames: ['ship', 'plane']\n")


@pytest.fixture(params=[0])
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A folder with the page's files in own/ and an overlay of the smallest steps, found before the shipped `cpu`."""
    write(tmp_path / "cpu.yaml", yaml.safe_dump({"transfer": TINY["transfer"]}))
    rng = random.Random(request.param)
    for name, make in zip(TASKS, (roboflow, cvat, flat, yolo), strict=True):
        make(tmp_path / "own" / name, rng)
    for text in blocks("yaml", PAGE):
        write(tmp_path / text.split()[1], text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(words: str) -> list[list[str]]:
    """The page's commands of a verb of `ssl-transfer data`."""
    lines = [line for block in blocks("bash", PAGE) for line in block.splitlines()]
    return [shlex.split(line)[2:] for line in lines if line.startswith(f"ssl-transfer data {words}")]


@pytest.mark.parametrize("place", range(3), indirect=True)
def test_each_export_becomes_a_task_that_check_and_plan_accept(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared = [*commands("split"), *commands("import")]
    assert [words[0] for words in prepared] == ["split", "split", "import"]
    for words in prepared:
        assert call_main(data.main, words) == EXIT_OK
    capsys.readouterr()
    for task in TASKS:
        assert call_main(data.main, ["check", "--config-file", f"own/{task}.yaml"]) == EXIT_OK
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 3 and all(line.startswith("ok ") for line in lines[:2])
    assert call_main(launch.main, ["plan", "own/labels.yaml"]) == EXIT_OK
    planned = capsys.readouterr().out
    assert all(f"finetune.scratch.own_{task}.s1" in planned for task in TASKS)


def test_the_page_s_files_and_blocks_are_these(place: Path) -> None:
    assert {text.split()[1] for text in blocks("yaml", PAGE)} == {
        *(f"own/{task}.yaml" for task in TASKS),
        "own/labels.yaml",
    }
    assert sum("ssl-transfer transfer" in block for block in blocks("bash", PAGE)) == 1


@pytest.mark.slow
def test_the_page_of_labels_runs_from_top_to_bottom(place: Path, wheel_bin: Path) -> None:
    run_script("\n".join(blocks("bash", PAGE)), place, wheel_bin)
    for folder in ("own/runs/single", "own/runs/labels"):
        results = [json.loads(file.read_text()) for file in (place / folder).rglob("result.json")]
        assert sorted(result["task"] for result in results) == sorted(f"own_{task}" for task in TASKS), folder
        for result in results:
            assert result["status"] == "done" and set(result["metrics"]["bbox"]["per_class"]) <= set(CLASSES)
            assert ("segm" in result["metrics"]) == (result["task"] == "own_cvat")
    assert "own_yolo" in (place / "own/runs/labels/table.md").read_text()
