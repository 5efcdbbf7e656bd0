"""The fast pipelines against the reference: each step by itself with the same draw, and whole views of photographs.

The limits are in levels of 255: the mean absolute difference, and the greatest of any pixel. Differences come from
where Pillow cuts off and OpenCV rounds, from hue, which both keep in 256 steps, and from Pillow's blur, whose three
passes each round and repeat the edge.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pretrain.data.augment import AugmentationConfig, apply_to_image, sample_params
from pretrain.data.decode import decode
from pretrain.data.pipelines import PIPELINES, build_pipeline
from pretrain.data.pipelines.opencv import blur_kernel
from pretrain.data.sampler import philox_generator
from tests.pretrain.data.levels import PLAIN, SIZE, STEPS, levels, pictures

PHOTOS = Path(__file__).resolve().parents[4] / "shared" / "data" / "photos" / "train"
FAST = tuple(name for name in PIPELINES if name != "pil")


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("step", STEPS)
def test_each_step_equals_pillow_within_its_limit(name: str, step: str) -> None:
    view, mean, greatest = STEPS[step]
    images = list(pictures())
    theirs = np.stack([np.asarray(apply_to_image(image, view, SIZE)) for image in images]).astype(float)
    gaps = np.abs(levels(name, images, [view] * len(images)) - theirs)
    assert gaps.mean() <= mean <= 2 and gaps.max() <= greatest + 0.01


@pytest.mark.parametrize("name", FAST)
def test_blur_equals_pillow_away_from_the_edges(name: str) -> None:
    images = list(pictures())
    for radius in (0.1, 0.5, 1.0, 1.7, 2.0):
        views = [replace(PLAIN, blur=radius)] * len(images)
        gaps = np.abs(levels(name, images, views) - levels("pil", images, views))[:, 13:-13, 13:-13]
        assert gaps.max() <= 4, (radius, gaps.max())


def test_pil_pipeline_equals_apply_to_image() -> None:
    images = list(pictures())
    views = [
        sample_params(AugmentationConfig(SIZE), *image.size, philox_generator(0, 0, i, 0))
        for i, image in enumerate(images)
    ]
    theirs = np.stack(
        [np.asarray(apply_to_image(image, view, SIZE)) for image, view in zip(images, views, strict=True)]
    )
    assert np.abs(levels("pil", images, views) - theirs).max() < 1e-3


@pytest.mark.parametrize("radius", [0.1, 0.3, 1.0, 2.0, 5.5])
def test_kernel_equals_pillows_blur_of_a_point(radius: float) -> None:
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
def test_whole_views_are_close_to_pillow(name: str) -> None:
    images = [pictures()[i % 6] for i in range(60)]
    views = [
        sample_params(AugmentationConfig(SIZE, solarize_prob=0.2), *image.size, philox_generator(3, 1, i, 0))
        for i, image in enumerate(images)
    ]
    gaps = np.abs(levels(name, images, views) - levels("pil", images, views)).mean((1, 2, 3))
    assert gaps.mean() < 1.0 and gaps.max() < 3
    wrong = [replace(view, flip=not view.flip) for view in views]
    assert np.abs(levels(name, images, wrong) - levels("pil", images, views)).mean() > 15  # the limits tell


def test_sample_does_not_depend_on_its_batch() -> None:
    images = list(pictures())
    views = [
        sample_params(AugmentationConfig(SIZE, solarize_prob=0.5), *image.size, philox_generator(0, 0, i, 0))
        for i, image in enumerate(images)
    ]
    together = levels("crops", images, views)
    for i, (image, view) in enumerate(zip(images, views, strict=True)):
        assert np.array_equal(levels("crops", [image], [view])[0], together[i])


@pytest.fixture(scope="module")
def photos() -> list[Path]:
    if not PHOTOS.is_dir():
        pytest.skip(f"{PHOTOS} is not there")
    return sorted(PHOTOS.rglob("*.*"))


def test_decoded_photos_equal_pillow_bit_for_bit(photos: list[Path]) -> None:
    fast, reference = build_pipeline("opencv"), build_pipeline("pil")
    for path in photos[::2]:
        ours, met = decode(path, fast.decode)
        theirs, met_too = decode(path, reference.decode)
        assert met == met_too and fast.image_size(ours) == reference.image_size(theirs)
        assert np.array_equal(ours, np.asarray(theirs)), path


@pytest.mark.slow
@pytest.mark.parametrize("name", FAST)
def test_statistics_of_views_of_photos(photos: list[Path], name: str) -> None:
    images = [decode(path, build_pipeline("pil").decode)[0] for path in photos]
    views = [
        sample_params(AugmentationConfig(224), *image.size, philox_generator(0, 0, i, 0))
        for i, image in enumerate(images)
    ]
    ours, theirs = (levels(way, images, views, 224) for way in (name, "pil"))
    gaps = np.abs(ours - theirs)
    assert gaps.mean() < 1.0 and gaps.mean((1, 2, 3)).max() < 4
    assert np.abs(ours.mean((0, 1, 2)) - theirs.mean((0, 1, 2))).max() < 0.5
    assert np.abs(ours.std((0, 1, 2)) / theirs.std((0, 1, 2)) - 1).max() < 0.01
    per_image = [one.std((1, 2, 3)) for one in (ours, theirs)]
    assert np.abs(per_image[0] / per_image[1] - 1).mean() < 0.01
    shares = [np.histogram(one, 16, (0, 255.001))[0] / one.size for one in (ours, theirs)]
    assert np.abs(shares[0] - shares[1]).max() < 0.005
