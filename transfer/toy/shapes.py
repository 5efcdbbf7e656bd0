"""The three things of the toy world: named as VOC and COCO classes, told apart by outline and hue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from transfer.toy.geometry import Polygon, place
from transfer.toy.painting import Canvas, fill, hsv, noise

Frame = Callable[[Polygon], Polygon]
"""Takes unit coordinates of a shape to pixels."""


@dataclass(frozen=True)
class Shape:
    """A class of things.

    Attributes:
        name: its class name, valid in VOC and COCO.
        coco_id: its category id in COCO 2017.
        hue: the middle of its hues, 0…1.
        aspect: width through height.
        outline: draws a silhouette in unit coordinates, varied by the generator.
        details: (unit polygon, brightness factor) of what is painted inside.
    """

    name: str
    coco_id: int
    hue: float
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


def frame(shape: Shape, size: float, angle: float, centre: tuple[float, float]) -> Frame:
    """The frame of a thing whose area is about `size`² pixels."""
    root = np.sqrt(shape.aspect)
    half = (size * root / 2, size / root / 2)
    return lambda outline: place(outline, half, angle, centre)


def paint_shape(
    canvas: Canvas, rng: Generator, shape: Shape, outline: Polygon, to_pixels: Frame, opacity: float = 1.0
) -> None:
    """Paint a thing: its silhouette (in pixels) in a colour near its class's, shaded, then its details."""
    height, width = canvas.shape[:2]
    hue = shape.hue + rng.uniform(-0.045, 0.045)
    saturation, value = rng.uniform(0.65, 0.95), rng.uniform(0.55, 0.9)
    shade = np.float32(0.08) * noise(rng, width, height, 8)
    fill(canvas, outline, hsv(hue, saturation, value), opacity, shade)
    for polygon, brightness in shape.details:
        paler = saturation * (0.3 if brightness > 1 else 1.0)
        fill(canvas, to_pixels(polygon), hsv(hue, paler, min(1.0, value * brightness)), opacity)
