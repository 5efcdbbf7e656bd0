"""Write scenes as COCO 2017: polygons of visible parts; a split has one crowd (uncompressed RLE) and an empty image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transfer.toy.drawing import SHAPES, area_of, generator, names_of
from transfer.toy.scenes import Crowd, Scene, SceneObject, compose

EMPTY, CROWDED = 1, 2
"""Index of a split's empty image, and of the image with the crowd."""
SMALLEST_SPLIT = 5
"""Room for every class besides the empty image and the crowd."""
FIRST_ID = {"train": 100, "val": 100_000}
CATEGORIES = [
    {"supercategory": "vehicle" if shape.name == "bus" else "animal", "id": shape.coco_id, "name": shape.name}
    for shape in SHAPES
]


def write(root: Path, seed: int, splits: dict[str, int]) -> None:
    """Write `root/coco` with `annotations/instances_{split}2017.json` and `{split}2017/` for each split."""
    base = root / "coco"
    (base / "annotations").mkdir(parents=True)
    for split, count in splits.items():
        (base / f"{split}2017").mkdir()
        content = _write_split(base / f"{split}2017", seed, split, count)
        path = base / "annotations" / f"instances_{split}2017.json"
        path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _write_split(folder: Path, seed: int, split: str, count: int) -> dict[str, Any]:
    """Write one split's images and return the content of its annotation file."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        rng = generator(seed, f"coco/{split}", index)
        names = [] if index == EMPTY else names_of(rng, index, tuple(shape.name for shape in SHAPES))
        scene = compose(rng, names, crowd=index == CROWDED)
        image_id = FIRST_ID[split] + 7 * index
        file_name = f"{image_id:012d}.jpg"
        scene.image.save(folder / file_name, quality=92)
        width, height = scene.size
        images.append({"license": 1, "file_name": file_name, "height": height, "width": width, "id": image_id})
        for entry in entries(scene):
            annotations.append({**entry, "image_id": image_id, "id": FIRST_ID[split] + len(annotations)})
    licence = {"id": 1, "name": "drawn for this project", "url": ""}
    head = {"info": {"description": "toy", "year": 2017}, "licenses": [licence]}
    return {**head, "images": images, "annotations": annotations, "categories": CATEGORIES}


def entries(scene: Scene) -> list[dict[str, Any]]:
    """The scene's annotations, without ids."""
    found = [_thing(found) for found in scene.objects]
    return found + ([_herd(scene.crowd)] if scene.crowd else [])


def _category(name: str) -> int:
    return next(shape.coco_id for shape in SHAPES if shape.name == name)


def _thing(found: SceneObject) -> dict[str, Any]:
    polygon = np.round(found.polygon, 2)
    (x0, y0), (x1, y1) = polygon.min(axis=0), polygon.max(axis=0)
    return {
        "segmentation": [[float(v) for v in polygon.ravel()]],
        "area": round(area_of(polygon), 2),
        "iscrowd": 0,
        "category_id": _category(found.name),
        "bbox": [round(float(v), 2) for v in (x0, y0, x1 - x0, y1 - y0)],
    }


def _herd(crowd: Crowd) -> dict[str, Any]:
    ys, xs = np.nonzero(crowd.mask)
    x0, y0 = int(xs.min()), int(ys.min())
    return {
        "segmentation": {"counts": run_lengths(crowd.mask), "size": list(crowd.mask.shape)},
        "area": int(crowd.mask.sum()),
        "iscrowd": 1,
        "category_id": _category(crowd.name),
        "bbox": [x0, y0, int(xs.max()) + 1 - x0, int(ys.max()) + 1 - y0],
    }


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed RLE: run lengths in column-major order; the first run, perhaps empty, is background."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    turns = np.flatnonzero(flat[1:] != flat[:-1])
    return [int(n) for n in np.diff(np.concatenate([[0], turns, [flat.size - 1]]))]
