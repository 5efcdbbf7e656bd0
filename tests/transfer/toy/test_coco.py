"""The COCO sets, read by pycocotools and Detectron2, and held against the pixels they describe."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from transfer.toy.coco_files import run_lengths

IDS = {"bus": 6, "cat": 17, "sheep": 20}
SPLITS = {"train": 8, "val": 5}


def load(world: Path, split: str) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(world / "detection" / "coco" / "annotations" / f"instances_{split}2017.json"))


def image_of(world: Path, coco: COCO, split: str, image_id: int) -> Image.Image:
    name = coco.loadImgs(image_id)[0]["file_name"]
    return Image.open(world / "detection" / "coco" / f"{split}2017" / name)


@pytest.mark.parametrize("split", SPLITS)
def test_images_and_categories(world: Path, split: str) -> None:
    coco = load(world, split)
    assert len(coco.imgs) == SPLITS[split]
    assert {category["name"]: category["id"] for category in coco.cats.values()} == IDS
    assert {annotation["category_id"] for annotation in coco.anns.values()} == set(IDS.values())
    for image_id, entry in coco.imgs.items():
        assert image_of(world, coco, split, image_id).size == (entry["width"], entry["height"])
    assert len(list((world / "detection" / "coco" / f"{split}2017").iterdir())) == SPLITS[split]


def test_no_image_or_annotation_is_in_both_splits(world: Path) -> None:
    train, val = load(world, "train"), load(world, "val")
    assert not set(train.imgs) & set(val.imgs)
    assert len(train.anns) == len(train.dataset["annotations"])


@pytest.mark.parametrize("split", SPLITS)
def test_one_crowd_and_one_empty_image(world: Path, split: str) -> None:
    coco = load(world, split)
    crowds = [annotation for annotation in coco.anns.values() if annotation["iscrowd"]]
    assert len(crowds) == 1
    assert isinstance(crowds[0]["segmentation"]["counts"], list)
    mask = coco.annToMask(crowds[0])
    ys, xs = np.nonzero(mask)
    assert mask.sum() == crowds[0]["area"] > 200
    assert crowds[0]["bbox"] == [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
    assert sum(not coco.getAnnIds(image_id) for image_id in coco.imgs) == 1


@pytest.mark.parametrize("split", SPLITS)
def test_boxes_and_areas_are_those_of_the_polygons(world: Path, split: str) -> None:
    coco = load(world, split)
    for annotation in coco.loadAnns(coco.getAnnIds(iscrowd=False)):
        points = np.array(annotation["segmentation"][0]).reshape(-1, 2)
        x, y, width, height = annotation["bbox"]
        assert np.allclose([x, y, x + width, y + height], [*points.min(axis=0), *points.max(axis=0)], atol=0.011)
        entry = coco.imgs[annotation["image_id"]]
        assert points.min() >= 0 and points[:, 0].max() <= entry["width"] and points[:, 1].max() <= entry["height"]
        assert coco.annToMask(annotation).sum() == pytest.approx(annotation["area"], rel=0.08)


def test_no_two_things_share_a_pixel(world: Path) -> None:
    coco = load(world, "train")
    for image_id in coco.imgs:
        masks = [coco.annToMask(annotation) for annotation in coco.loadAnns(coco.getAnnIds(image_id))]
        assert not masks or np.sum(masks, axis=0).max() == 1


def test_polygons_lie_where_the_things_were_drawn(world: Path) -> None:
    """Inside each polygon of the file the image's pixels are coloured; just outside they are pale."""
    coco = load(world, "train")
    polygons = coco.loadAnns(coco.getAnnIds(iscrowd=False))
    assert len(polygons) >= 8
    for annotation in polygons:
        image = image_of(world, coco, "train", annotation["image_id"]).convert("HSV")
        saturation = np.asarray(image, dtype=float)[..., 1] / 255
        mask = Image.fromarray(coco.annToMask(annotation) * 255)
        inside = np.asarray(mask.filter(ImageFilter.MinFilter(5))) > 0
        near, far = (np.asarray(mask.filter(ImageFilter.MaxFilter(size))) > 0 for size in (5, 9))
        assert (saturation[inside] > 0.15).mean() > 0.97, annotation
        assert np.median(saturation[far & ~near]) < 0.5 * np.median(saturation[inside]), annotation


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_truth_scores_100(world: Path, kind: str) -> None:
    coco = load(world, "val")
    truth = [
        {
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "score": 1.0,
            "bbox": annotation["bbox"],
            "segmentation": coco.annToRLE(annotation),
        }
        for annotation in coco.loadAnns(coco.getAnnIds(iscrowd=False))
    ]
    if kind == "bbox":
        truth = [{key: value for key, value in entry.items() if key != "segmentation"} for entry in truth]
    with contextlib.redirect_stdout(io.StringIO()):
        score = COCOeval(coco, coco.loadRes(truth), kind)
        score.evaluate()
        score.accumulate()
        score.summarize()
    assert score.stats[0] == pytest.approx(1.0)


def test_detectron2_reads_them(world: Path) -> None:
    from detectron2.data.datasets.coco import load_coco_json

    base = world / "detection" / "coco"
    records = load_coco_json(str(base / "annotations" / "instances_train2017.json"), str(base / "train2017"))
    assert len(records) == 8
    found = [annotation for record in records for annotation in record["annotations"]]
    assert len(found) == len(load(world, "train").anns)
    assert all(annotation["segmentation"] for annotation in found)


@pytest.mark.parametrize("corner", [0, 1])
def test_run_lengths_are_cocos(corner: int) -> None:
    rng = np.random.default_rng(0)
    mask = rng.uniform(size=(7, 5)) < 0.5
    mask[0, 0] = corner
    encoded = rle.frPyObjects({"counts": run_lengths(mask), "size": [7, 5]}, 7, 5)
    assert np.array_equal(rle.decode(encoded).astype(bool), mask)
    assert sum(run_lengths(mask)) == mask.size
