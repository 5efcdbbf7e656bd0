"""Paint: gradients, noise, textures and anti-aliased polygons on a float32 canvas (H, W, 3) with values in 0…1."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from transfer.toy.geometry import Polygon

Canvas = NDArray[np.float32]
Colour = tuple[float, float, float]

SUPERSAMPLING = 4


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """A colour by hue (any real, wraps at 1), saturation and value (0…1)."""
    return colorsys.hsv_to_rgb(hue % 1.0, saturation, value)


def coverage(polygon: Polygon, width: int, height: int) -> NDArray[np.float32]:
    """How much of each pixel the polygon covers: (height, width), 0…1.

    Pillow paints every fine pixel an edge touches, so a shape comes out about a tenth of a pixel larger all around.
    """
    fine = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    points = [(float(x), float(y)) for x, y in polygon * SUPERSAMPLING]
    ImageDraw.Draw(fine).polygon(points, fill=255)
    return np.asarray(fine.reduce(SUPERSAMPLING), dtype=np.float32) / np.float32(255)


def fill(canvas: Canvas, polygon: Polygon, colour: Colour, opacity: float = 1.0, shade: Canvas | None = None) -> None:
    """Paint a polygon in one colour, in place; `shade` (H, W, 1) is added to it as light and shadow."""
    height, width = canvas.shape[:2]
    alpha = coverage(polygon, width, height)[..., None] * np.float32(opacity)
    paint = np.asarray(colour, dtype=np.float32) + (0 if shade is None else shade)
    canvas += alpha * (paint - canvas)


def noise(rng: Generator, width: int, height: int, cell: int) -> Canvas:
    """Smooth noise (height, width, 1), about -1…1, whose blobs are `cell` pixels wide."""
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
    """A pale gradient between two colours under blotches of two sizes and grain."""
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
    """Add a camera's pixel noise, in place."""
    canvas += rng.normal(0, strength, canvas.shape).astype(np.float32)


def to_image(canvas: Canvas) -> Image.Image:
    """The canvas as an 8-bit RGB image."""
    return Image.fromarray((np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8))
