"""Write scenes as COCO 2017: polygons of visible parts; a split has one crowd (uncompressed RLE) and an empty image."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfer.toy.drawing import SHAPES, Shape, area_of, generator, names_of
from transfer.toy.scenes import Crowd, Scene, SceneObject, compose

EMPTY, CROWDED = 1, 2
"""Index of a split's empty image, and of the image with the crowd."""
SMALLEST_SPLIT = 5
"""Room for every class besides the empty image and the crowd."""
FIRST_ID = {"train": 100, "val": 100_000, "heldout": 200_000}
LICENCE = "drawn for this project"
Categories = list[dict[str, Any]]
CATEGORIES = [
    {"supercategory": "vehicle" if shape.name == "bus" else "animal", "id": shape.coco_id, "name": shape.name}
    for shape in SHAPES
]


def write(
    root: Path,
    splits: dict[str, int],
    draw: Callable[[str, int], Scene],
    categories: Categories = CATEGORIES,
    licence: str = LICENCE,
) -> None:
    """Write `root/coco` with `annotations/instances_{split}2017.json` and `{split}2017/` for each split.

    Args:
        root: the folder of `coco`.
        splits: number of images of `train`, `val` and perhaps `heldout`.
        draw: the scene of a split and an index in it, called in this order.
        categories: COCO's list of categories: id and name of each class.
        licence: the name of the images' licence.
    """
    base = root / "coco"
    (base / "annotations").mkdir(parents=True)
    head = {
        "info": {"description": "toy", "year": 2017},
        "licenses": [{"id": 1, "name": licence, "url": ""}],
    }
    for split, count in splits.items():
        (base / f"{split}2017").mkdir()
        content = _write_split(
            base / f"{split}2017", FIRST_ID[split], (draw(split, n) for n in range(count)), categories
        )
        path = base / "annotations" / f"instances_{split}2017.json"
        path.write_text(json.dumps({**head, **content}) + "\n", encoding="utf-8")


def _write_split(folder: Path, first_id: int, scenes: Iterable[Scene], categories: Categories) -> dict[str, Any]:
    """Write one split's images and return the lists of its annotation file."""
    ids = {category["name"]: int(category["id"]) for category in categories}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, scene in enumerate(scenes):
        image_id = first_id + 7 * index
        file_name = f"{image_id:012d}.jpg"
        scene.image.save(folder / file_name, quality=92)
        width, height = scene.size
        images.append({"license": 1, "file_name": file_name, "height": height, "width": width, "id": image_id})
        for entry in entries(scene, ids):
            annotations.append({**entry, "image_id": image_id, "id": first_id + len(annotations)})
    return {"images": images, "annotations": annotations, "categories": categories}


def shapes(seed: int, classes: tuple[Shape, ...], split: str, index: int) -> Scene:
    """The toy set's scene of coloured shapes."""
    rng = generator(seed, f"coco/{split}", index)
    names = [] if index == EMPTY else names_of(rng, index, tuple(shape.name for shape in classes))
    return compose(rng, names, crowd=index == CROWDED, shapes=classes)


def entries(scene: Scene, ids: Mapping[str, int]) -> list[dict[str, Any]]:
    """The scene's annotations, without their own ids; `ids` are those of the categories by name."""
    found = [_thing(thing, ids[thing.name]) for thing in scene.objects]
    return found + ([_herd(scene.crowd, ids[scene.crowd.name])] if scene.crowd else [])


def _thing(found: SceneObject, category: int) -> dict[str, Any]:
    polygon = np.round(found.polygon, 2)
    (x0, y0), (x1, y1) = polygon.min(axis=0), polygon.max(axis=0)
    return {
        "segmentation": [[float(v) for v in polygon.ravel()]],
        "area": round(area_of(polygon), 2),
        "iscrowd": 0,
        "category_id": category,
        "bbox": [round(float(v), 2) for v in (x0, y0, x1 - x0, y1 - y0)],
    }


def _herd(crowd: Crowd, category: int) -> dict[str, Any]:
    ys, xs = np.nonzero(crowd.mask)
    x0, y0 = int(xs.min()), int(ys.min())
    return {
        "segmentation": {"counts": run_lengths(crowd.mask), "size": list(crowd.mask.shape)},
        "area": int(crowd.mask.sum()),
        "iscrowd": 1,
        "category_id": category,
        "bbox": [x0, y0, int(xs.max()) + 1 - x0, int(ys.max()) + 1 - y0],
    }


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed RLE: run lengths in column-major order; the first run, perhaps empty, is background."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    turns = np.flatnonzero(flat[1:] != flat[:-1])
    return [int(n) for n in np.diff(np.concatenate([[0], turns, [flat.size - 1]]))]
