"""The fast pipelines against the reference: each step by itself with the same draw, and whole views of photographs.

The limits are in levels of 255: the mean absolute difference, and the greatest of any pixel. Differences come from
where Pillow cuts off and OpenCV rounds, from hue, which both keep in 256 steps, and from Pillow's blur, whose three
passes each round and repeat the edge.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from pretrain.data.augment import Recipe, View, apply, draw
from pretrain.data.decode import decode
from pretrain.data.pipelines import PIPELINES, pipeline
from pretrain.data.pipelines.kernels import blur_kernel
from pretrain.data.pipelines.packed import pack
from pretrain.data.preprocessing import MEAN, STD
from pretrain.data.randomness import stream

PHOTOS = Path(__file__).resolve().parents[4] / "shared" / "data" / "photos" / "train"
FAST = tuple(name for name in PIPELINES if name != "pil")
SIZE = 96
PLAIN = View(box=(10, 20, 180, 200), jitter=(), gray=False, blur=None, solarize=False, flip=False)


class Limit(NamedTuple):
    """A step, and how far a fast pipeline may be from Pillow in it."""

    view: View
    mean: float
    greatest: int


def _jitter(name: str, factor: float) -> View:
    return replace(PLAIN, jitter=((name, factor),))


STEPS = {
    "crop": Limit(PLAIN, 0.1, 1),
    "crop that is enlarged": Limit(replace(PLAIN, box=(10, 20, 40, 50)), 0.1, 1),
    "darker": Limit(_jitter("brightness", 0.6), 0.1, 2),
    "brighter": Limit(_jitter("brightness", 1.4), 0.1, 2),
    "less contrast": Limit(_jitter("contrast", 0.6), 0.1, 2),
    "more contrast": Limit(_jitter("contrast", 1.4), 0.1, 2),
    "less colour": Limit(_jitter("saturation", 0.6), 0.3, 2),
    "more colour": Limit(_jitter("saturation", 1.4), 0.3, 3),
    "hue forwards": Limit(_jitter("hue", 0.1), 1.0, 12),
    "hue backwards": Limit(_jitter("hue", -0.1), 1.0, 12),
    "gray": Limit(replace(PLAIN, gray=True), 0.1, 2),
    "hardly blurred": Limit(replace(PLAIN, blur=0.1), 0.2, 3),
    "blurred": Limit(replace(PLAIN, blur=1.0), 0.8, 6),
    "much blurred": Limit(replace(PLAIN, blur=2.0), 0.5, 12),
    "solarised": Limit(replace(PLAIN, solarize=True), 0.1, 1),
    "mirrored": Limit(replace(PLAIN, flip=True), 0.1, 1),
}


def _picture(seed: int) -> Image.Image:
    """Structure at all scales, in saturated colours."""
    rng = np.random.RandomState(seed)
    layers = [rng.normal(0, 60 / k, (240 // k, 320 // k, 3)) for k in (1, 2, 8, 40)]
    big = [np.kron(layer, np.ones((k, k, 1)))[:240, :320] for layer, k in zip(layers, (1, 2, 8, 40), strict=True)]
    pixels = np.clip(128 + sum(big) + rng.normal(0, 40, 3), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.7))


@cache
def _pictures() -> tuple[Image.Image, ...]:
    return tuple(_picture(seed) for seed in range(6))


def _levels(name: str, images: list[Image.Image], views: list[View], size: int = SIZE) -> np.ndarray:
    """Views by a pipeline, as it would give them to the network, scaled back to levels: (N, size, size, 3)."""
    way = pipeline(name)
    out = np.empty((len(images), size, size, 3), dtype=np.uint8)
    for page, image, view in zip(out, images, views, strict=True):
        way.render(image if name == "pil" else np.array(image), view, page)
    finished = way.finish(torch.from_numpy(out).permute(0, 3, 1, 2), torch.from_numpy(pack(views)))
    assert finished.dtype == torch.float32
    scale = torch.tensor(STD).view(3, 1, 1), torch.tensor(MEAN).view(3, 1, 1)
    return (255 * (finished * scale[0] + scale[1])).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("step", STEPS)
def test_each_step_is_pillows_within_its_limit(name: str, step: str) -> None:
    view, mean, greatest = STEPS[step]
    images = list(_pictures())
    theirs = np.stack([np.asarray(apply(image, view, SIZE)) for image in images]).astype(float)
    gaps = np.abs(_levels(name, images, [view] * len(images)) - theirs)
    assert gaps.mean() <= mean <= 2 and gaps.max() <= greatest + 0.01


@pytest.mark.parametrize("name", FAST)
def test_away_from_the_edges_a_blur_is_pillows(name: str) -> None:
    images = list(_pictures())
    for radius in (0.1, 0.5, 1.0, 1.7, 2.0):
        views = [replace(PLAIN, blur=radius)] * len(images)
        gaps = np.abs(_levels(name, images, views) - _levels("pil", images, views))[:, 13:-13, 13:-13]
        assert gaps.max() <= 4, (radius, gaps.max())


def test_the_reference_is_the_reference() -> None:
    images = list(_pictures())
    views = [draw(Recipe(SIZE), *image.size, stream(0, 0, i, 0)) for i, image in enumerate(images)]
    theirs = np.stack([np.asarray(apply(image, view, SIZE)) for image, view in zip(images, views, strict=True)])
    assert np.abs(_levels("pil", images, views) - theirs).max() < 1e-3


@pytest.mark.parametrize("radius", [0.1, 0.3, 1.0, 2.0, 5.5])
def test_the_kernel_is_what_pillow_makes_of_a_point(radius: float) -> None:
    kernel = blur_kernel(radius)
    assert len(kernel) % 2 == 1 and abs(kernel.sum() - 1) < 1e-6 and np.allclose(kernel, kernel[::-1])
    place = np.arange(len(kernel)) - len(kernel) // 2
    assert abs((kernel * place**2).sum() - radius**2) < 1e-4 * max(1, radius**2)
    line = np.zeros((65, 65), dtype=np.uint8)
    line[:, 32] = 255
    theirs = np.asarray(Image.fromarray(line).filter(ImageFilter.GaussianBlur(radius)))[32]
    ours = np.zeros(65)
    ours[32 - len(kernel) // 2 : 33 + len(kernel) // 2] = 255 * kernel
    assert np.abs(ours - theirs).max() <= 2


@pytest.mark.parametrize("name", FAST)
def test_whole_views_are_close_and_drawn_alike(name: str) -> None:
    images = [_pictures()[i % 6] for i in range(60)]
    views = [draw(Recipe(SIZE, solarize_prob=0.2), *image.size, stream(3, 1, i, 0)) for i, image in enumerate(images)]
    gaps = np.abs(_levels(name, images, views) - _levels("pil", images, views)).mean((1, 2, 3))
    assert gaps.mean() < 1.0 and gaps.max() < 3
    wrong = [replace(view, flip=not view.flip) for view in views]
    assert np.abs(_levels(name, images, wrong) - _levels("pil", images, views)).mean() > 15  # the limits tell


def test_a_sample_does_not_depend_on_its_batch() -> None:
    images = list(_pictures())
    views = [draw(Recipe(SIZE, solarize_prob=0.5), *image.size, stream(0, 0, i, 0)) for i, image in enumerate(images)]
    together = _levels("crops", images, views)
    for i, (image, view) in enumerate(zip(images, views, strict=True)):
        assert np.array_equal(_levels("crops", [image], [view])[0], together[i])


@pytest.fixture(scope="module")
def photos() -> list[Path]:
    if not PHOTOS.is_dir():
        pytest.skip(f"{PHOTOS} is not there")
    return sorted(PHOTOS.rglob("*.*"))


def test_decoded_photos_are_pillows_to_the_bit(photos: list[Path]) -> None:
    fast, reference = pipeline("opencv"), pipeline("pil")
    for path in photos[::2]:
        ours, met = decode(path, fast.pixels)
        theirs, met_too = decode(path, reference.pixels)
        assert met == met_too and fast.size(ours) == reference.size(theirs)
        assert np.array_equal(ours, np.asarray(theirs)), path


@pytest.mark.slow
@pytest.mark.parametrize("name", FAST)
def test_statistics_of_views_of_photos(photos: list[Path], name: str) -> None:
    images = [decode(path, pipeline("pil").pixels)[0] for path in photos]
    views = [draw(Recipe(224), *image.size, stream(0, 0, i, 0)) for i, image in enumerate(images)]
    ours, theirs = (_levels(way, images, views, 224) for way in (name, "pil"))
    gaps = np.abs(ours - theirs)
    assert gaps.mean() < 1.0 and gaps.mean((1, 2, 3)).max() < 4
    assert np.abs(ours.mean((0, 1, 2)) - theirs.mean((0, 1, 2))).max() < 0.5
    assert np.abs(ours.std((0, 1, 2)) / theirs.std((0, 1, 2)) - 1).max() < 0.01
    per_image = [levels.std((1, 2, 3)) for levels in (ours, theirs)]
    assert np.abs(per_image[0] / per_image[1] - 1).mean() < 0.01
    shares = [np.histogram(levels, 16, (0, 255.001))[0] / levels.size for levels in (ours, theirs)]
    assert np.abs(shares[0] - shares[1]).max() < 0.005
