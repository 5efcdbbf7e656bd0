"""Detection sets of scenes that are made of small photographs: objects among distractors that are not annotated.

An object is a photograph with a soft edge. A distractor has the same kind of edge, and pieces of photographs or a
texture inside, so that an edge alone is no object. Everything may overlap; an object's outline is where the part of it
that can be seen is half opaque.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from contourpy import contour_generator
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from ssl_transfer.errors import UserError
from ssl_transfer.files import write_json
from transfer.toy import coco_files, voc_files
from transfer.toy.build import write_once
from transfer.toy.drawing import Canvas, Polygon, area_of, background, generator, grain, noise, to_image
from transfer.toy.photographs import Deck, Photographs, Pixels, divide, read_photographs
from transfer.toy.scenes import TRIES, Scene, SceneObject

FORMAT = "scenes/1"
USED = "photographs.json"
"""File of a set that lists the photographs of each part."""
LONG_SIDE, SHORT_SIDE = (160, 180), (120, 136)
OBJECT_SIZE = (28.0, 64.0)
"""Longer side of an object, in pixels; the shorter one is at least 0.8 of it."""
MARGIN, SOFTNESS = 1.12, 0.2
"""Size of the painted photograph in sizes of its object, and width of the edge in halves of that size."""
VISIBLE = 0.6
"""Share of an object that can be seen, at least."""
TRUNCATED = 0.1
"""Share of the objects that the edge of the image may cut."""
PIECE = 8
"""Side of a distractor's pieces, in pixels of the photograph."""

Alpha = NDArray[np.float32]


@dataclass(frozen=True)
class SceneSizes:
    """Numbers of a set's scenes and photographs.

    Attributes:
        labels: labelled train photographs of VOC2007's trainval and COCO's train; VOC2012 has twice as many others.
        scenes: of VOC2007's trainval, COCO's train, VOC2012's train and its val; held out are half as many.
        test: scenes of VOC2007's test and COCO's val.
    """

    labels: int = 1000
    scenes: int = 400
    test: int = 400

    def check(self, classes: int) -> None:
        """Raise UserError where a number is too small for every class to have an object."""
        for name, value in asdict(self).items():
            if value < 2 * classes:
                raise UserError(f"--{name} {value}: too few; give {2 * classes}, two a class, or more")


@dataclass
class Thing:
    """What was pasted on a canvas.

    Attributes:
        name: class; None for a distractor.
        visible: share of each pixel of the canvas that shows it, (height, width).
        whole: its area in pixels, if nothing hid it.
    """

    name: str | None
    visible: Alpha
    whole: float


def build_scene_sets(root: Path, out: Path, seed: int = 0, sizes: SceneSizes | None = None) -> Photographs | None:
    """Make the sets of scenes: `detection/` with VOC2007, VOC2012 and coco, and `toy.json` beside it.

    VOC2007's list `heldout` and COCO's `instances_heldout2017.json` are scenes of train photographs that are in no
    other split, to choose learning rates on. Test scenes are made of test photographs only.

    Args:
        root: an ImageFolder with `train/` and `test/`.
        out: the folder to create; it must be missing, empty, or hold the same set.
        seed: the same seed, sizes and photographs give the same bytes on the same platform.
        sizes: numbers of scenes and photographs.

    Returns:
        The photographs, or None where the sets existed already.

    Raises:
        UserError: a photograph cannot be read, there are too few, or `out` holds something else or cannot be written.
    """
    sizes = sizes or SceneSizes()
    if seed < 0:
        raise UserError(f"--seed: {seed} is negative; give 0 or more")
    photographs = read_photographs(root)
    sizes.check(len(photographs.classes))
    each = sizes.labels // len(photographs.classes)
    parts = divide(photographs, seed, {"labels": each, "more": 2 * each, "heldout": (each + 1) // 2})
    parts["test"] = [(name, file) for name, files in photographs.files["test"].items() for file in files]
    if not parts["test"]:
        raise UserError(f"{root}/test has no photograph that is not in train, too; give another ImageFolder")
    record = {
        "format": FORMAT,
        "seed": seed,
        **asdict(sizes),
        "classes": list(photographs.classes),
        "photographs": photographs.digest,
    }
    return photographs if write_once(out, record, partial(_draw, photographs, seed, sizes, parts)) else None


def _draw(
    photographs: Photographs, seed: int, sizes: SceneSizes, parts: dict[str, list[tuple[str, str]]], folder: Path
) -> None:
    used: dict[str, set[str]] = {part: set() for part in parts}

    def drawer(name: str, part_of: dict[str, str]) -> Callable[[str, int], Scene]:
        """Scenes of a set's splits; those of one part have one deck."""
        decks = {
            part: Deck(photographs.root, parts[part], generator(seed, f"{name}/{part}", 0), used[part])
            for part in {*part_of.values()}
        }
        return lambda split, index: compose(generator(seed, f"{name}/{split}", index), decks[part_of[split]])

    detection, half = folder / "detection", sizes.scenes // 2
    counts = {"train": sizes.scenes - half, "val": half, "test": sizes.test, "heldout": half}
    part_of = {"train": "labels", "val": "labels", "test": "test", "heldout": "heldout"}
    voc_files.write(detection, 2007, counts, drawer("VOC2007", part_of))
    counts = {"train": sizes.scenes, "val": sizes.scenes}
    voc_files.write(detection, 2012, counts, drawer("VOC2012", {"train": "more", "val": "more"}))
    counts = {"train": sizes.scenes, "val": sizes.test, "heldout": half}
    part_of = {"train": "labels", "val": "test", "heldout": "heldout"}
    categories = [
        {"supercategory": "photograph", "id": number, "name": name}
        for number, name in enumerate(photographs.classes, start=1)
    ]
    coco_files.write(detection, counts, drawer("coco", part_of), categories, "that of the photographs")
    write_json(folder / USED, {part: sorted(files) for part, files in used.items()})


def compose(rng: Generator, deck: Deck) -> Scene:
    """A scene of one to four objects.

    Args:
        rng: the scene's.
        deck: the photographs that objects, distractors and background are made of.
    """
    canvas, things = arrange(rng, deck)
    grain(rng, canvas, 0.01)
    return Scene(to_image(canvas), [_annotated(thing) for thing in things if thing.name is not None])


def arrange(rng: Generator, deck: Deck) -> tuple[Canvas, list[Thing]]:
    """A canvas with one to four objects and two to four distractors; the last thing is on top."""
    width, height = int(rng.integers(*LONG_SIDE)), int(rng.integers(*SHORT_SIDE))
    if rng.uniform() < 0.25:
        width, height = height, width
    canvas = _backdrop(rng, deck, width, height)
    things: list[Thing] = []
    kinds = [True] * int(rng.integers(1, 5)) + [False] * int(rng.integers(2, 5))
    for is_object in rng.permutation(kinds):
        name, pixels = deck.deal() if is_object else (None, _distractor(rng, deck))
        _paste(rng, canvas, things, name, pixels)
    return canvas, things


def _annotated(thing: Thing) -> SceneObject:
    polygon = _outline(thing.visible)
    assert thing.name is not None and polygon is not None
    height, width = thing.visible.shape
    at_edge = polygon.min() <= 0 or polygon[:, 0].max() >= width or polygon[:, 1].max() >= height
    hidden = area_of(polygon) < 0.97 * thing.whole
    return SceneObject(thing.name, polygon, truncated=bool(at_edge), occluded=bool(hidden and not at_edge))


def _backdrop(rng: Generator, deck: Deck, width: int, height: int) -> Canvas:
    """A pale gradient, or a few pixels of a photograph as large as the canvas; both with noise."""
    canvas = background(rng, width, height)
    if rng.uniform() < 0.7:
        side = int(rng.integers(4, 13))
        pixels = deck.pick()
        top, left = (int(rng.integers(max(length - side, 0) + 1)) for length in pixels.shape[:2])
        part = Image.fromarray(pixels[top : top + side, left : left + side])
        blurred = np.asarray(part.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32) / 255
        canvas += np.float32(rng.uniform(0.6, 1)) * (blurred - canvas)
    return canvas


def _distractor(rng: Generator, deck: Deck) -> Pixels:
    """Shuffled pieces of one or two photographs, or a coloured texture."""
    if rng.uniform() < 0.25:
        colours = rng.uniform(0, 1, (2, 3)).astype(np.float32)
        weight = np.clip(0.5 + noise(rng, 32, 32, int(rng.integers(3, 12))), 0, 1)
        return np.asarray(to_image(colours[0] + weight * (colours[1] - colours[0])))
    first = deck.pick()
    second = first if rng.uniform() < 0.5 else deck.pick()
    pieces = [
        photo[top : top + PIECE, left : left + PIECE]
        for photo in (first, second)
        for top in range(0, photo.shape[0] - PIECE + 1, PIECE)
        for left in range(0, photo.shape[1] - PIECE + 1, PIECE)
    ]
    order = rng.choice(len(pieces), 16, replace=len(pieces) < 16)
    rotated = [np.rot90(pieces[index], int(rng.integers(4))) for index in order]
    return np.concatenate([np.concatenate(rotated[row : row + 4], axis=1) for row in range(0, 16, 4)])


def _paste(rng: Generator, canvas: Canvas, things: list[Thing], name: str | None, pixels: Pixels) -> None:
    """Paste a photograph where it leaves enough of each object below it to be seen; or nowhere, after some tries."""
    for _ in range(TRIES):
        layer = _layer(rng, pixels)
        outline = _outline(layer[..., 3])
        placed = _placed(rng, layer, *canvas.shape[:2])
        added = Thing(name, placed[..., 3], 0.0 if outline is None else area_of(outline))
        below = [_hidden(thing, added.visible) for thing in things]
        changed = [new for new, old in zip(below, things, strict=True) if new is not old]
        if all(_can_be_seen(thing) for thing in (*changed, added) if thing.name is not None):
            things[:] = [*below, added]
            canvas += placed[..., 3:] * (placed[..., :3] - canvas)
            return


def _layer(rng: Generator, pixels: Pixels) -> Canvas:
    """A photograph of random size with a soft edge: colours and opacity, (height, width, 4).

    Its shape is between an ellipse and a rounded box; its opacity is 0 at the layer's edges.
    """
    long = float(np.exp(rng.uniform(*np.log(OBJECT_SIZE))))
    height, width = (round(float(side) * MARGIN) for side in rng.permutation([long, long * rng.uniform(0.8, 1)]))
    power = rng.uniform(2.2, 5)
    y, x = (((np.arange(side) + 0.5) / side * 2 - 1) * MARGIN for side in (height, width))
    radius = (np.abs(y)[:, None] ** power + np.abs(x)[None] ** power) ** (1 / power)
    photo = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    painted = np.asarray(photo, dtype=np.float32) / 255 * np.float32(rng.uniform(0.85, 1.15))
    if rng.uniform() < 0.5:
        painted = painted[:, ::-1]
    return np.dstack([painted, (1 - radius) / SOFTNESS + 0.5]).clip(0, 1).astype(np.float32)


def _placed(rng: Generator, layer: Canvas, height: int, width: int) -> Canvas:
    """A layer at a random place of an empty canvas, (height, width, 4); the canvas's edge may cut it."""
    beyond = 0.3 if rng.uniform() < TRUNCATED else 0.0
    high, wide = layer.shape[:2]
    around = np.zeros((height + 2 * high, width + 2 * wide, 4), dtype=np.float32)
    top, left = (
        side + round(rng.uniform(-beyond * side, length - (1 - beyond) * side))
        for side, length in ((high, height), (wide, width))
    )
    around[top : top + high, left : left + wide] = layer
    return around[high:-high, wide:-wide]


def _hidden(thing: Thing, alpha: Alpha) -> Thing:
    """A thing below another one of this opacity; the same object where the two do not meet."""
    if not np.any(thing.visible * alpha):
        return thing
    return Thing(thing.name, thing.visible * (1 - alpha), thing.whole)


def _can_be_seen(thing: Thing) -> bool:
    polygon = _outline(thing.visible)
    return polygon is not None and area_of(polygon) >= VISIBLE * thing.whole


def _outline(alpha: Alpha) -> Polygon | None:
    """The line where opacity (height, width) is one half, in pixels; None where it is not one line."""
    lines = contour_generator(z=np.pad(alpha, 1), name="serial").lines(0.5)
    if len(lines) != 1:
        return None
    return np.asarray(lines[0], dtype=np.float64)[:-1] - 0.5  # a pixel's centre is half a pixel from its corner
