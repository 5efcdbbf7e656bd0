"""Scenes: background, pale distractors, objects that may be truncated, occluded or difficult, sometimes a crowd."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from transfer.toy.drawing import (
    SHAPES,
    Box,
    Canvas,
    Polygon,
    Shape,
    area_of,
    background,
    box_of,
    clip_half_plane,
    clip_to_image,
    coverage,
    fill,
    frame,
    grain,
    hsv,
    paint_shape,
    to_image,
)

ASPECTS = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9))
SHORT_SIDE = (128, 160)
OBJECT_SIZE = (0.28, 0.6)
DIFFICULT_SIZE = (0.1, 0.14)
"""Size of an object in shorter sides of its image; of a difficult one."""
GAP = 6.0
"""Pixels between two objects: what occludes one never covers its neighbour."""
TRIES = 40


@dataclass(frozen=True)
class SceneObject:
    """One annotated object.

    Attributes:
        name: class name.
        polygon: its visible part, in pixels.
        difficult: small or faint; VOC's flag.
        truncated: cut off by the edge of the image.
        occluded: partly covered.
    """

    name: str
    polygon: Polygon
    difficult: bool = False
    truncated: bool = False
    occluded: bool = False

    @property
    def box(self) -> Box:
        return box_of(self.polygon)


@dataclass(frozen=True)
class Crowd:
    """COCO's crowd: many objects of one class with one mask, bool (height, width)."""

    name: str
    mask: NDArray[np.bool_]


@dataclass
class Scene:
    """An image and everything annotated in it."""

    image: Image.Image
    objects: list[SceneObject] = field(default_factory=list)
    crowd: Crowd | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.image.size


@dataclass
class SceneCanvas:
    """A scene under construction: its canvas and the occupied boxes."""

    rng: Generator
    canvas: Canvas
    occupied: list[Box] = field(default_factory=list)

    @property
    def width(self) -> int:
        return int(self.canvas.shape[1])

    @property
    def height(self) -> int:
        return int(self.canvas.shape[0])

    def is_free(self, box: Box) -> bool:
        return not any(box.overlaps(other, GAP) for other in self.occupied)


def compose(
    rng: Generator,
    names: list[str],
    difficult: bool = False,
    crowd: bool = False,
    *,
    shapes: tuple[Shape, ...] = SHAPES,
    sizes: tuple[float, float] = OBJECT_SIZE,
) -> Scene:
    """Draw a scene.

    Args:
        rng: the random generator of the image.
        names: classes of the objects, in order; one without free space is left out.
        difficult: add one small or faint object.
        crowd: add a crowd of sheep.
        shapes: the classes.
        sizes: of the objects, in shorter sides of the image.
    """
    width, height = image_size(rng)
    scene = SceneCanvas(rng, background(rng, width, height))
    for _ in range(int(rng.integers(1, 4))):
        _paint_distractor(scene)
    by_name = {shape.name: shape for shape in shapes}
    sheep = _paint_crowd(scene, by_name["sheep"]) if crowd else None
    objects = [_paint_object(scene, by_name[name], sizes) for name in names]
    if difficult:
        shape = shapes[int(rng.integers(len(shapes)))]
        objects.append(_paint_object(scene, shape, DIFFICULT_SIZE, difficult=True))
    grain(rng, scene.canvas)
    return Scene(to_image(scene.canvas), [painted for painted in objects if painted is not None], sheep)


def image_size(rng: Generator, short_side: tuple[int, int] = SHORT_SIDE) -> tuple[int, int]:
    """Sample width and height from several aspect ratios; the shorter side is within `short_side`."""
    across, down = ASPECTS[int(rng.integers(len(ASPECTS)))]
    short = int(rng.integers(short_side[0], short_side[1] + 1))
    unit = short / min(across, down)
    return round(across * unit), round(down * unit)


def _paint_distractor(scene: SceneCanvas) -> None:
    """Paint a pale bar, disc or triangle in the background."""
    rng = scene.rng
    corners = int(rng.choice([3, 4, 24]))
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False) + rng.uniform(0, np.pi)
    long, short = rng.uniform(10, 50), rng.uniform(4, 14)
    half = (short, short) if corners == 24 else (long, short)
    centre = (rng.uniform(0, scene.width), rng.uniform(0, scene.height))
    outline = np.stack([np.cos(angle) * half[0], np.sin(angle) * half[1]], axis=1) + centre
    fill(scene.canvas, outline, hsv(rng.uniform(), rng.uniform(0, 0.2), rng.uniform(0.2, 0.9)))


def _paint_object(
    scene: SceneCanvas, shape: Shape, sizes: tuple[float, float], difficult: bool = False
) -> SceneObject | None:
    """Paint one object; None where there is no free space."""
    rng = scene.rng
    short = min(scene.width, scene.height)
    for attempt in range(TRIES):
        # Each failed attempt makes it smaller, so that it fits into a full scene.
        size = rng.uniform(*sizes) * short * (1 if difficult else 0.97**attempt)
        edge = -0.2 if rng.uniform() < 0.15 and not difficult else 0.5
        centre = tuple(rng.uniform(edge * size, side - edge * size) for side in (scene.width, scene.height))
        to_pixels = frame(shape, size, rng.uniform(-0.4, 0.4), (centre[0], centre[1]))
        whole = to_pixels(shape.outline(rng))
        visible = clip_to_image(whole, scene.width, scene.height)
        if len(visible) and area_of(visible) > 0.6 * area_of(whole) and scene.is_free(box_of(visible)):
            break
    else:
        return None
    scene.occupied.append(box_of(visible))
    paint_shape(scene.canvas, rng, shape, whole, to_pixels, opacity=0.55 if difficult else 1.0)
    truncated = area_of(visible) < 0.999 * area_of(whole)
    occluded = not difficult and not truncated and rng.uniform() < 0.15
    if occluded:
        visible = _occlude_end(scene, visible)
    return SceneObject(shape.name, visible, difficult, truncated, occluded)


def _occlude_end(scene: SceneCanvas, polygon: Polygon) -> Polygon:
    """Cover one end of an object in grey; return the visible part of its polygon."""
    rng = scene.rng
    hidden, grey = rng.uniform(0.15, 0.35), rng.uniform(0.25, 0.75)
    axis, sign = int(rng.integers(2)), float(rng.choice([-1, 1]))
    normal = (sign, 0.0) if axis == 0 else (0.0, sign)
    along = polygon @ np.asarray(normal)
    limit = float(along.max() - hidden * (along.max() - along.min()))
    # The occluder is the padded box beyond the line; it may extend into the gap around every object.
    box, pad = box_of(polygon), GAP / 2
    padded = Box(box.x0 - pad, box.y0 - pad, box.x1 + pad, box.y1 + pad).corners()
    occluder = clip_half_plane(padded, (-normal[0], -normal[1]), -limit)
    fill(scene.canvas, occluder, hsv(rng.uniform(), 0.05, grey))
    return clip_half_plane(polygon, normal, limit)


def _paint_crowd(scene: SceneCanvas, shape: Shape) -> Crowd:
    """Paint a dozen overlapping small objects of one class."""
    rng = scene.rng
    mask = np.zeros((scene.height, scene.width), dtype=bool)
    reach = 0.32 * min(scene.width, scene.height)
    middle = (rng.uniform(reach, scene.width - reach), rng.uniform(reach, scene.height - reach))
    for _ in range(12):
        centre = tuple(float(rng.uniform(m - 0.7 * reach, m + 0.7 * reach)) for m in middle)
        to_pixels = frame(shape, 0.45 * reach, rng.uniform(-0.4, 0.4), (centre[0], centre[1]))
        outline = to_pixels(shape.outline(rng))
        paint_shape(scene.canvas, rng, shape, outline, to_pixels)
        mask |= coverage(outline, scene.width, scene.height) > 0.5
    ys, xs = np.nonzero(mask)
    scene.occupied.append(Box(float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)))
    return Crowd(shape.name, mask)
