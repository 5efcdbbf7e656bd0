"""The VOC years, read by those who will read them: Detectron2's loader and evaluator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from PIL import Image

CLASSES = ("bus", "cat", "sheep")
SPLITS = {2007: {"train": 6, "val": 6, "trainval": 12, "test": 8}, 2012: {"train": 4, "val": 3, "trainval": 7}}


def listed(world: Path, year: int, split: str) -> list[str]:
    return (world / "detection" / f"VOC{year}" / "ImageSets" / "Main" / f"{split}.txt").read_text().split()


def objects(world: Path, year: int, name: str) -> Iterator[tuple[ET.Element, tuple[int, int, int, int]]]:
    tree = ET.parse(world / "detection" / f"VOC{year}" / "Annotations" / f"{name}.xml")
    for element in tree.findall("object"):
        x0, y0, x1, y1 = (int(element.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax"))
        yield element, (x0, y0, x1, y1)


@pytest.mark.parametrize("year", [2007, 2012])
def test_the_splits(world: Path, year: int) -> None:
    lists = {split: listed(world, year, split) for split in SPLITS[year]}
    assert {split: len(ids) for split, ids in lists.items()} == SPLITS[year]
    assert sorted(lists["train"] + lists["val"]) == lists["trainval"]
    everything = lists["trainval"] + lists.get("test", [])
    base = world / "detection" / f"VOC{year}"
    assert len(set(everything)) == len(everything)
    assert {file.stem for file in (base / "JPEGImages").iterdir()} == set(everything)
    assert {file.stem for file in (base / "Annotations").iterdir()} == set(everything)
    assert (base / "ImageSets" / "Main" / "test.txt").exists() == (year == 2007)


@pytest.mark.parametrize(("year", "split"), [(year, split) for year in SPLITS for split in SPLITS[year]])
def test_every_split_has_every_class_and_a_difficult_object(world: Path, year: int, split: str) -> None:
    found = [element for name in listed(world, year, split) for element, _ in objects(world, year, name)]
    assert {element.findtext("name") for element in found} == set(CLASSES)
    assert 0 < sum(element.findtext("difficult") == "1" for element in found) < len(found) / 3


@pytest.mark.parametrize("year", [2007, 2012])
def test_boxes_lie_in_their_images(world: Path, year: int) -> None:
    for name in listed(world, year, "trainval"):
        width, height = Image.open(world / "detection" / f"VOC{year}" / "JPEGImages" / f"{name}.jpg").size
        tree = ET.parse(world / "detection" / f"VOC{year}" / "Annotations" / f"{name}.xml")
        assert (tree.findtext("size/width"), tree.findtext("size/height")) == (str(width), str(height))
        for _, (x0, y0, x1, y1) in objects(world, year, name):
            assert 1 <= x0 < x1 <= width and 1 <= y0 < y1 <= height


def test_things_that_are_cut_off_say_so(world: Path) -> None:
    """A box that touches the image's edge belongs to something truncated, and only such a box does."""
    seen = set()
    for name in listed(world, 2007, "trainval") + listed(world, 2007, "test"):
        width, height = Image.open(world / "detection" / "VOC2007" / "JPEGImages" / f"{name}.jpg").size
        for element, (x0, y0, x1, y1) in objects(world, 2007, name):
            truncated = element.findtext("truncated") == "1"
            seen.add(truncated)
            if truncated:
                assert x0 == 1 or y0 == 1 or x1 == width or y1 == height
    assert seen == {True, False}


def test_there_are_images_of_both_orientations(world: Path) -> None:
    files = (world / "detection" / "VOC2007" / "JPEGImages").iterdir()
    assert {image.width > image.height for image in map(Image.open, files) if image.width != image.height} == {
        True,
        False,
    }


def test_detectron2_reads_and_scores_them(world: Path) -> None:
    """Its evaluator needs pose, truncated and difficult; the truth itself, difficult things left out, scores 100."""
    import torch
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets.pascal_voc import load_voc_instances, register_pascal_voc
    from detectron2.evaluation import PascalVOCDetectionEvaluator
    from detectron2.structures import Boxes, Instances

    folder = str(world / "detection" / "VOC2007")
    records = load_voc_instances(folder, "test", CLASSES)
    assert len(records) == 8 and all(record["annotations"] for record in records)
    register_pascal_voc("toy_layout_test", folder, "test", 2007, CLASSES)
    try:
        evaluator = PascalVOCDetectionEvaluator("toy_layout_test")
        evaluator.reset()
        for record in records:
            flags = [element.findtext("difficult") for element, _ in objects(world, 2007, record["image_id"])]
            kept = [a for a, difficult in zip(record["annotations"], flags, strict=True) if difficult == "0"]
            found = Instances((record["height"], record["width"]))
            found.pred_boxes = Boxes(torch.tensor([a["bbox"] for a in kept]))
            found.scores = torch.ones(len(kept))
            found.pred_classes = torch.tensor([a["category_id"] for a in kept])
            evaluator.process([record], [{"instances": found}])
        assert evaluator.evaluate()["bbox"] == pytest.approx({"AP": 100.0, "AP50": 100.0, "AP75": 100.0})
    finally:
        DatasetCatalog.remove("toy_layout_test")
        MetadataCatalog.remove("toy_layout_test")
