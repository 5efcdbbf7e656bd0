"""Drawing of the toy set: polygons, paint on a float32 canvas (H, W, 3) with values in 0…1, and the three shapes.

Polygons are float64 (N, 2) in pixels: x to the right, y down, top left corner of the image at (0, 0). Every image has
its own random generator, a function of (seed, part, index): a larger set contains the images of a smaller one.
"""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Canvas = NDArray[np.float32]
Colour = tuple[float, float, float]
Polygon = NDArray[np.float64]


class Box(NamedTuple):
    """An axis-aligned rectangle, in pixels."""

    x0: float
    y0: float
    x1: float
    y1: float

    def overlaps(self, other: Box, margin: float = 0.0) -> bool:
        """Whether the distance between the two is less than `margin`."""
        apart_x = self.x0 >= other.x1 + margin or other.x0 >= self.x1 + margin
        apart_y = self.y0 >= other.y1 + margin or other.y0 >= self.y1 + margin
        return not (apart_x or apart_y)

    def corners(self) -> Polygon:
        x, y = [self.x0, self.x1, self.x1, self.x0], [self.y0, self.y0, self.y1, self.y1]
        return np.array([x, y], dtype=np.float64).T


def box_of(polygon: Polygon) -> Box:
    (x0, y0), (x1, y1) = polygon.min(axis=0), polygon.max(axis=0)
    return Box(float(x0), float(y0), float(x1), float(y1))


def area_of(polygon: Polygon) -> float:
    """The area by the shoelace formula, in square pixels."""
    x, y = polygon.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def place(outline: Polygon, half_size: tuple[float, float], angle: float, centre: tuple[float, float]) -> Polygon:
    """Scale an outline of unit coordinates (-1 … 1), rotate it by `angle` radians and move it."""
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    return (outline * half_size) @ turn + centre


def clip_half_plane(polygon: Polygon, normal: tuple[float, float], limit: float) -> Polygon:
    """Clip a polygon to normal·x ≤ limit (Sutherland and Hodgman 1974); the result may be empty."""
    side = polygon @ np.asarray(normal, dtype=np.float64) - limit
    kept: list[Polygon] = []
    for index, here in enumerate(side):
        point, before, previous = polygon[index], side[index - 1], polygon[index - 1]
        if (before < 0) != (here < 0) and before != here:
            kept.append(previous + (point - previous) * (before / (before - here)))
        if here <= 0:
            kept.append(point)
    return np.array(kept, dtype=np.float64).reshape(-1, 2)


def clip_to_image(polygon: Polygon, width: int, height: int) -> Polygon:
    """Clip a polygon to the image."""
    edges = (((-1.0, 0.0), 0.0), ((1.0, 0.0), width), ((0.0, -1.0), 0.0), ((0.0, 1.0), height))
    for normal, limit in edges:
        if len(polygon):
            polygon = clip_half_plane(polygon, normal, limit)
    return polygon


def generator(seed: int, part: str, index: int) -> Generator:
    """The random generator of image `index` of a part such as `VOC2007`."""
    return Generator(PCG64(SeedSequence([seed, zlib.crc32(part.encode()), index])))


def names_of(rng: Generator, index: int, classes: tuple[str, ...], most: int = 3) -> list[str]:
    """One to `most` class names for image `index`; the first one cycles through the classes."""
    more = [classes[int(rng.integers(len(classes)))] for _ in range(int(rng.integers(0, most)))]
    return [classes[index % len(classes)], *more]


SUPERSAMPLING = 4


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """A colour from hue (any real, wraps at 1), saturation and value (0…1)."""
    return colorsys.hsv_to_rgb(hue % 1.0, saturation, value)


def coverage(polygon: Polygon, width: int, height: int) -> NDArray[np.float32]:
    """Fraction of each pixel that the polygon covers: (height, width), 0…1.

    Pillow paints every fine pixel that an edge touches, so shapes are larger by about a tenth of a pixel on each side.
    """
    fine = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    points = [(float(x), float(y)) for x, y in polygon * SUPERSAMPLING]
    ImageDraw.Draw(fine).polygon(points, fill=255)
    return np.asarray(fine.reduce(SUPERSAMPLING), dtype=np.float32) / np.float32(255)


def fill(canvas: Canvas, polygon: Polygon, colour: Colour, opacity: float = 1.0, shade: Canvas | None = None) -> None:
    """Paint a polygon in one colour, in place; `shade` (H, W, 1) is added to the colour."""
    height, width = canvas.shape[:2]
    alpha = coverage(polygon, width, height)[..., None] * np.float32(opacity)
    paint = np.asarray(colour, dtype=np.float32) + (0 if shade is None else shade)
    canvas += alpha * (paint - canvas)


def noise(rng: Generator, width: int, height: int, cell: int) -> Canvas:
    """Smooth noise (height, width, 1), about -1…1, with blobs of `cell` pixels."""
    grid = rng.uniform(-1, 1, (max(2, height // cell + 2), max(2, width // cell + 2))).astype(np.float32)
    smooth = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=np.float32)[..., None]


def ramp(rng: Generator, width: int, height: int) -> Canvas:
    """A linear ramp (height, width, 1) from 0 to 1 in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    slope = (x * np.cos(angle) + y * np.sin(angle)).astype(np.float32)
    return ((slope - slope.min()) / (slope.max() - slope.min()))[..., None]


def background(rng: Generator, width: int, height: int) -> Canvas:
    """A pale gradient between two colours with noise of two scales."""
    hue = rng.uniform()
    first, second = (
        np.asarray(hsv(hue + rng.uniform(-0.1, 0.1), rng.uniform(0, 0.22), rng.uniform(0.3, 0.85)), dtype=np.float32)
        for _ in range(2)
    )
    canvas: Canvas = first + (second - first) * ramp(rng, width, height)
    canvas += np.float32(rng.uniform(0.03, 0.12)) * noise(rng, width, height, 24)
    canvas += np.float32(rng.uniform(0.02, 0.08)) * noise(rng, width, height, 6)
    return canvas


def grain(rng: Generator, canvas: Canvas, strength: float = 0.02) -> None:
    canvas += rng.normal(0, strength, canvas.shape).astype(np.float32)


def to_image(canvas: Canvas) -> Image.Image:
    return Image.fromarray((np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8))


Frame = Callable[[Polygon], Polygon]
"""Transforms a shape's unit coordinates to pixels."""


@dataclass(frozen=True)
class Shape:
    """A class of objects.

    Attributes:
        name: its class name, valid in VOC and COCO.
        coco_id: its category id in COCO 2017.
        hue: the mean of its hues, 0…1; None: any hue, so that its outline alone tells its class.
        aspect: width divided by height.
        outline: samples a silhouette in unit coordinates.
        details: (unit polygon, brightness factor) of the parts painted inside.
    """

    name: str
    coco_id: int
    hue: float | None
    aspect: float
    outline: Callable[[Generator], Polygon]
    details: tuple[tuple[Polygon, float], ...]


def _points(*pairs: tuple[float, float]) -> Polygon:
    return np.array(pairs, dtype=np.float64)


def _arc(centre: tuple[float, float], radius: float, start: float, end: float, count: int) -> Polygon:
    angle = np.linspace(start, end, count)
    return np.stack([centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)], axis=1)


def _bus(rng: Generator) -> Polygon:
    """A box on two wheels with a slanted nose."""
    nose = rng.uniform(0.0, 0.25)
    body = _points((-1, -1), (1 - nose, -1), (1, -0.2), (1, 0.75))
    front, back = (_arc((x, 0.72), 0.26, 0, np.pi, 7) for x in (0.5, -0.5))
    return np.concatenate([body, front, back, _points((-1, 0.75))])


def _cat(rng: Generator) -> Polygon:
    """A round head with two pointed ears."""
    height = rng.uniform(0.9, 1.0)
    face = _arc((0.0, 0.15), 0.85, np.deg2rad(-35), np.deg2rad(215), 22)
    ears = _points((-0.78, -height), (-0.3, -0.62), (0.3, -0.62), (0.78, -height))
    return np.concatenate([face, ears])


def _sheep(rng: Generator) -> Polygon:
    """A cloud with five to seven bulges."""
    bulges, phase = int(rng.integers(5, 8)), rng.uniform(0, np.pi)
    angle = np.linspace(0, 2 * np.pi, 56, endpoint=False)
    radius = 0.76 + 0.24 * np.abs(np.sin(angle * bulges / 2 + phase))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _square(x: float, y: float, half: float) -> Polygon:
    return _points((x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half))


SHAPES = (
    Shape("bus", 6, 0.02, 1.8, _bus, tuple((_square(x, -0.45, 0.2), 1.5) for x in (-0.65, -0.15, 0.35))),
    Shape("cat", 17, 0.62, 1.0, _cat, tuple((_arc((x, 0.05), 0.14, 0, 2 * np.pi, 12), 0.35) for x in (-0.32, 0.32))),
    Shape("sheep", 20, 0.33, 1.3, _sheep, ((_arc((0.5, 0.05), 0.24, 0, 2 * np.pi, 14), 0.45),)),
)

ANY_HUE = tuple(replace(shape, hue=None) for shape in SHAPES)


def frame(shape: Shape, size: float, angle: float, centre: tuple[float, float]) -> Frame:
    """The transform for an object with an area of about `size`² pixels."""
    root = np.sqrt(shape.aspect)
    half = (size * root / 2, size / root / 2)
    return lambda outline: place(outline, half, angle, centre)


def paint_shape(
    canvas: Canvas, rng: Generator, shape: Shape, outline: Polygon, to_pixels: Frame, opacity: float = 1.0
) -> None:
    """Paint an object: its shaded silhouette (in pixels) in a hue of its class, then its details."""
    height, width = canvas.shape[:2]
    hue = rng.uniform() if shape.hue is None else shape.hue + rng.uniform(-0.045, 0.045)
    saturation, value = rng.uniform(0.65, 0.95), rng.uniform(0.55, 0.9)
    shade = np.float32(0.08) * noise(rng, width, height, 8)
    fill(canvas, outline, hsv(hue, saturation, value), opacity, shade)
    for polygon, brightness in shape.details:
        paler = saturation * (0.3 if brightness > 1 else 1.0)
        fill(canvas, to_pixels(polygon), hsv(hue, paler, min(1.0, value * brightness)), opacity)
