"""Scenes: a background, pale distractors, things that may be cut off, hidden in part or difficult, sometimes a herd."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from transfer.toy.geometry import Box, Polygon, area_of, box_of, clip_half_plane, clip_to_image
from transfer.toy.painting import Canvas, background, coverage, fill, grain, hsv, to_image
from transfer.toy.shapes import SHAPES, Shape, frame, paint_shape

ASPECTS = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9))
SHORT_SIDE = (128, 160)
GAP = 6.0
"""Pixels between two things: a veil over one never hides its neighbour."""
TRIES = 40


@dataclass(frozen=True)
class Thing:
    """One annotated object.

    Attributes:
        name: class name.
        polygon: what is visible of it, in pixels.
        difficult: small or faint: VOC's flag.
        truncated: cut off by the image's edge.
        occluded: hidden in part by something else.
    """

    name: str
    polygon: Polygon
    difficult: bool = False
    truncated: bool = False
    occluded: bool = False

    @property
    def box(self) -> Box:
        """The box of the visible part."""
        return box_of(self.polygon)


@dataclass(frozen=True)
class Herd:
    """Many things of one class that nobody tells apart: COCO's crowd. `mask` is bool (height, width)."""

    name: str
    mask: NDArray[np.bool_]


@dataclass
class Scene:
    """An image and everything annotated in it."""

    image: Image.Image
    things: list[Thing] = field(default_factory=list)
    herd: Herd | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.size


@dataclass
class _Stage:
    """A scene being painted: the canvas, and the boxes that are taken."""

    rng: Generator
    canvas: Canvas
    taken: list[Box] = field(default_factory=list)

    @property
    def width(self) -> int:
        return int(self.canvas.shape[1])

    @property
    def height(self) -> int:
        return int(self.canvas.shape[0])

    def free(self, box: Box) -> bool:
        return not any(box.overlaps(other, GAP) for other in self.taken)


def compose(rng: Generator, names: list[str], difficult: bool = False, herd: bool = False) -> Scene:
    """Draw a scene.

    Args:
        rng: all randomness comes from here.
        names: classes of the things to draw, in order; a later one is left out where no room is left.
        difficult: add one small or faint thing.
        herd: add a herd of sheep.
    """
    width, height = image_size(rng)
    stage = _Stage(rng, background(rng, width, height))
    for _ in range(int(rng.integers(1, 4))):
        _paint_distractor(stage)
    by_name = {shape.name: shape for shape in SHAPES}
    crowd = _paint_herd(stage, by_name["sheep"]) if herd else None
    things = [_paint_thing(stage, by_name[name]) for name in names]
    if difficult:
        things.append(_paint_thing(stage, SHAPES[int(rng.integers(len(SHAPES)))], difficult=True))
    grain(rng, stage.canvas)
    return Scene(to_image(stage.canvas), [thing for thing in things if thing is not None], crowd)


def image_size(rng: Generator, short_side: tuple[int, int] = SHORT_SIDE) -> tuple[int, int]:
    """A width and a height of one of several aspect ratios; the shorter one lies within `short_side`."""
    across, down = ASPECTS[int(rng.integers(len(ASPECTS)))]
    short = int(rng.integers(short_side[0], short_side[1] + 1))
    unit = short / min(across, down)
    return round(across * unit), round(down * unit)


def _paint_distractor(stage: _Stage) -> None:
    """A pale bar, disc or triangle, behind everything."""
    rng = stage.rng
    corners = int(rng.choice([3, 4, 24]))
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False) + rng.uniform(0, np.pi)
    long, short = rng.uniform(10, 50), rng.uniform(4, 14)
    half = (short, short) if corners == 24 else (long, short)
    centre = (rng.uniform(0, stage.width), rng.uniform(0, stage.height))
    outline = np.stack([np.cos(angle) * half[0], np.sin(angle) * half[1]], axis=1) + centre
    fill(stage.canvas, outline, hsv(rng.uniform(), rng.uniform(0, 0.2), rng.uniform(0.2, 0.9)))


def _paint_thing(stage: _Stage, shape: Shape, difficult: bool = False) -> Thing | None:
    """Paint one thing where there is room for it; None where there is not."""
    rng = stage.rng
    short = min(stage.width, stage.height)
    for attempt in range(TRIES):
        # Each failed try makes it smaller, so that a crowded scene still finds room.
        size = rng.uniform(0.1, 0.14) * short if difficult else rng.uniform(0.28, 0.6) * short * 0.97**attempt
        edge = -0.2 if rng.uniform() < 0.15 and not difficult else 0.5
        centre = tuple(rng.uniform(edge * size, side - edge * size) for side in (stage.width, stage.height))
        to_pixels = frame(shape, size, rng.uniform(-0.4, 0.4), (centre[0], centre[1]))
        whole = to_pixels(shape.outline(rng))
        visible = clip_to_image(whole, stage.width, stage.height)
        if len(visible) and area_of(visible) > 0.6 * area_of(whole) and stage.free(box_of(visible)):
            break
    else:
        return None
    stage.taken.append(box_of(visible))
    paint_shape(stage.canvas, rng, shape, whole, to_pixels, opacity=0.55 if difficult else 1.0)
    truncated = area_of(visible) < 0.999 * area_of(whole)
    occluded = not difficult and not truncated and rng.uniform() < 0.15
    if occluded:
        visible = _hide_an_end(stage, visible)
    return Thing(shape.name, visible, difficult, truncated, occluded)


def _hide_an_end(stage: _Stage, polygon: Polygon) -> Polygon:
    """Paint a grey veil over one end of a thing; what is left of its polygon."""
    rng = stage.rng
    hidden, grey = rng.uniform(0.15, 0.35), rng.uniform(0.25, 0.75)
    axis, sign = int(rng.integers(2)), float(rng.choice([-1, 1]))
    normal = (sign, 0.0) if axis == 0 else (0.0, sign)
    along = polygon @ np.asarray(normal)
    limit = float(along.max() - hidden * (along.max() - along.min()))
    # The veil is what a padded box has beyond the line: it reaches into the gap that every thing keeps.
    box, pad = box_of(polygon), GAP / 2
    padded = Box(box.x0 - pad, box.y0 - pad, box.x1 + pad, box.y1 + pad).corners()
    veil = clip_half_plane(padded, (-normal[0], -normal[1]), -limit)
    fill(stage.canvas, veil, hsv(rng.uniform(), 0.05, grey))
    return clip_half_plane(polygon, normal, limit)


def _paint_herd(stage: _Stage, shape: Shape) -> Herd:
    """A dozen small things of one class over one another, in a free corner."""
    rng = stage.rng
    mask = np.zeros((stage.height, stage.width), dtype=bool)
    reach = 0.32 * min(stage.width, stage.height)
    middle = (rng.uniform(reach, stage.width - reach), rng.uniform(reach, stage.height - reach))
    for _ in range(12):
        centre = tuple(float(rng.uniform(m - 0.7 * reach, m + 0.7 * reach)) for m in middle)
        to_pixels = frame(shape, 0.45 * reach, rng.uniform(-0.4, 0.4), (centre[0], centre[1]))
        outline = to_pixels(shape.outline(rng))
        paint_shape(stage.canvas, rng, shape, outline, to_pixels)
        mask |= coverage(outline, stage.width, stage.height) > 0.5
    ys, xs = np.nonzero(mask)
    stage.taken.append(Box(float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)))
    return Herd(shape.name, mask)
