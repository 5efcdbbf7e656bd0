"""Write scenes as a year of VOCdevkit: JPEGImages, Annotations, ImageSets/Main; boxes are 1-based and inclusive."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

from transfer.toy.drawing import Shape, generator, names_of
from transfer.toy.scenes import Scene, SceneObject, compose

SMALLEST_SPLIT = 3
"""Room for every class and a difficult object."""
DIFFICULT_EVERY = 6
"""Every sixth image has a difficult object."""


def write(root: Path, year: int, splits: dict[str, int], draw: Callable[[str, int], Scene]) -> None:
    """Write one year under `root/VOC<year>`.

    Args:
        root: the folder of the years, without `VOC<year>`.
        year: 2007 or 2012; it decides the form of the images' names.
        splits: number of images of `train`, `val` and perhaps others; `trainval` is the union of the two.
        draw: the scene of a split and an index in it; called once for each, the indices of a split in their order.
    """
    base = root / f"VOC{year}"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (base / folder).mkdir(parents=True)
    # Consecutive names are distributed over the splits, as in VOC: no split is one block of names.
    lists: dict[str, list[str]] = {split: [] for split in splits}
    for index, split in enumerate(_interleave(splits)):
        name = f"{index + 1:06d}" if year == 2007 else f"{year}_{index + 1:06d}"
        scene = draw(split, len(lists[split]))
        scene.image.save(base / "JPEGImages" / f"{name}.jpg", quality=92)
        (base / "Annotations" / f"{name}.xml").write_text(annotation(scene, year, name), encoding="utf-8")
        lists[split].append(name)
    lists["trainval"] = sorted(lists["train"] + lists["val"])
    for split, ids in lists.items():
        (base / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{i}\n" for i in ids), encoding="utf-8")


def shapes(seed: int, year: int, classes: tuple[Shape, ...], split: str, index: int) -> Scene:
    """The toy set's scene of coloured shapes."""
    rng = generator(seed, f"VOC{year}/{split}", index)
    names = names_of(rng, index, tuple(shape.name for shape in classes))
    return compose(rng, names, difficult=index % DIFFICULT_EVERY == 1, shapes=classes)


def _interleave(splits: dict[str, int]) -> list[str]:
    """The name of each image's split, evenly interleaved."""
    slots = [((k + 0.5) / count, split) for split, count in splits.items() for k in range(count)]
    return [split for _, split in sorted(slots)]


def annotation(scene: Scene, year: int, name: str) -> str:
    """The XML text of one image."""
    width, height = scene.size
    root = ET.Element("annotation")
    _add(root, folder=f"VOC{year}", filename=f"{name}.jpg")
    _add(ET.SubElement(root, "source"), database="toy", annotation="toy", image="drawn")
    _add(ET.SubElement(root, "size"), width=width, height=height, depth=3)
    _add(root, segmented=0)
    for found in scene.objects:
        node = ET.SubElement(root, "object")
        _add(node, name=found.name, pose="Unspecified", truncated=int(found.truncated), occluded=int(found.occluded))
        _add(node, difficult=int(found.difficult))
        x0, y0, x1, y1 = inclusive_box(found, width, height)
        _add(ET.SubElement(node, "bndbox"), xmin=x0, ymin=y0, xmax=x1, ymax=y1)
    ET.indent(root, "\t")
    return ET.tostring(root, encoding="unicode") + "\n"


def inclusive_box(found: SceneObject, width: int, height: int) -> tuple[int, int, int, int]:
    """The first and last pixels that the object touches, counted from 1."""
    box = found.box
    x0, y0 = max(0, math.floor(box.x0)), max(0, math.floor(box.y0))
    return x0 + 1, y0 + 1, min(width, max(math.ceil(box.x1), x0 + 1)), min(height, max(math.ceil(box.y1), y0 + 1))


def _add(parent: ET.Element, **fields: object) -> None:
    for tag, value in fields.items():
        ET.SubElement(parent, tag).text = str(value)
