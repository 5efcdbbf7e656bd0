"""Photos-to-be for pre-training: an ImageFolder of eight looks, three of things and five of textures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image

from transfer.toy.painting import Canvas, background, grain, hsv, noise, to_image
from transfer.toy.randomness import generator
from transfer.toy.scenes import compose, image_size
from transfer.toy.shapes import SHAPES

SHORT_SIDE = (96, 128)
TEXTURES = ("checks", "clouds", "dots", "stripes", "waves")
LOOKS = tuple(sorted((*(shape.name for shape in SHAPES), *TEXTURES)))


def write(root: Path, seed: int, split: str, count: int) -> None:
    """Write `count` photos, evenly over the looks, as `root/split/<look>/*.jpg`."""
    for look in LOOKS:
        (root / split / look).mkdir(parents=True)
    for index in range(count):
        look = LOOKS[index % len(LOOKS)]
        image = draw(generator(seed, f"photos/{split}", index), look)
        image.save(root / split / look / f"{index:05d}.jpg", quality=92)


def draw(rng: Generator, look: str) -> Image.Image:
    """One photo of a look."""
    if look not in TEXTURES:
        return compose(rng, [look]).image
    width, height = image_size(rng, SHORT_SIDE)
    canvas = background(rng, width, height)
    hue = rng.uniform()
    paint = np.asarray(hsv(hue, rng.uniform(0.3, 0.9), rng.uniform(0.3, 0.95)), dtype=np.float32)
    canvas += _pattern(rng, look, width, height) * (paint - canvas)
    grain(rng, canvas)
    return to_image(canvas)


def _pattern(rng: Generator, look: str, width: int, height: int) -> Canvas:
    """How much paint each pixel gets: (height, width, 1), 0…1."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(12, 30)
    u = (x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period)
    v = (y * np.cos(angle) - x * np.sin(angle)) * (2 * np.pi / period)
    if look == "stripes":
        wave = np.sin(u)
    elif look == "checks":
        wave = np.sign(np.sin(u)) * np.sign(np.sin(v))
    elif look == "dots":
        wave = np.cos(u) + np.cos(v) - 0.8
    elif look == "waves":
        wave = np.sin(u + 1.5 * np.sin(v / 2))
    else:
        wave = (noise(rng, width, height, 20) + 0.5 * noise(rng, width, height, 9))[..., 0] * 2
    return np.clip(0.5 + 3 * wave, 0, 1).astype(np.float32)[..., None]
