"""Photos for pre-training: an ImageFolder of eight classes, three of objects and five of textures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image

from transfer.toy.drawing import ANY_HUE, SHAPES, Canvas, Shape, background, generator, grain, hsv, noise, to_image
from transfer.toy.scenes import OBJECT_SIZE, compose, image_size

SHORT_SIDE = (96, 128)
FILLING = (0.55, 0.9)
"""Size of an object of any hue, in shorter sides: outlines are learnt where they are large."""
TEXTURES = ("checks", "clouds", "dots", "stripes", "waves")
PHOTO_CLASSES = tuple(sorted((*(shape.name for shape in SHAPES), *TEXTURES)))


def write(root: Path, seed: int, split: str, count: int, shapes: tuple[Shape, ...] = SHAPES) -> None:
    """Write `count` photos, distributed evenly over the classes, as `root/split/<class>/*.jpg`."""
    for name in PHOTO_CLASSES:
        (root / split / name).mkdir(parents=True)
    for index in range(count):
        name = PHOTO_CLASSES[index % len(PHOTO_CLASSES)]
        image = draw(generator(seed, f"photos/{split}", index), name, shapes)
        image.save(root / split / name / f"{index:05d}.jpg", quality=92)


def draw(rng: Generator, name: str, shapes: tuple[Shape, ...] = SHAPES) -> Image.Image:
    """Draw one photo of a class."""
    if name not in TEXTURES:
        return compose(rng, [name], shapes=shapes, sizes=FILLING if shapes is ANY_HUE else OBJECT_SIZE).image
    width, height = image_size(rng, SHORT_SIDE)
    canvas = background(rng, width, height)
    hue = rng.uniform()
    paint = np.asarray(hsv(hue, rng.uniform(0.3, 0.9), rng.uniform(0.3, 0.95)), dtype=np.float32)
    canvas += _pattern(rng, name, width, height) * (paint - canvas)
    grain(rng, canvas)
    return to_image(canvas)


def _pattern(rng: Generator, name: str, width: int, height: int) -> Canvas:
    """Opacity of the texture: (height, width, 1), 0…1."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(12, 30)
    u = (x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period)
    v = (y * np.cos(angle) - x * np.sin(angle)) * (2 * np.pi / period)
    if name == "stripes":
        wave = np.sin(u)
    elif name == "checks":
        wave = np.sign(np.sin(u)) * np.sign(np.sin(v))
    elif name == "dots":
        wave = np.cos(u) + np.cos(v) - 0.8
    elif name == "waves":
        wave = np.sin(u + 1.5 * np.sin(v / 2))
    else:
        wave = (noise(rng, width, height, 20) + 0.5 * noise(rng, width, height, 9))[..., 0] * 2
    return np.clip(0.5 + 3 * wave, 0, 1).astype(np.float32)[..., None]
