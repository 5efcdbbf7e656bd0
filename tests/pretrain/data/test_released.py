"""AUGMENT.STYLE byol and simclr against a rewrite of the released formulas in float64, on 200 images each.

Gaps are in levels of 255, mean and greatest. The greatest come from the resize: TensorFlow rounds a position, of which
it has a float32, to 1/1024 of a pixel.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.config import check_config, defaults
from pretrain.data.augment import AugmentationConfig, ViewParams, preprocessing_block, sample_params
from pretrain.data.dataset import MultiViewDataset
from pretrain.data.index import find_images
from pretrain.data.loader import BatchLoader
from pretrain.data.pipelines import build_pipeline, released
from pretrain.data.pipelines.base import BatchBuffer
from pretrain.data.sampler import ResumableBatchSampler, philox_generator
from pretrain.models.encoder import build_encoder
from ssl_transfer.errors import UserError
from tests.pretrain.data import released_formulas
from tests.pretrain.data.levels import pictures
from tests.pretrain.data.test_augment import _quantiles_agree
from tests.pretrain.data.test_pipelines import PHOTOS

RELEASED = ("byol", "simclr")
SIZE = 64
MEAN, GREATEST = 0.001, 0.1
"""Measured: 0.00001 and 0.0004; on the photos 0.00011 and 0.034."""
OTHER = {"byol": "simclr", "simclr": "byol"}
JITTER = {"byol": (0.4, 0.4, 0.2, 0.1), "simclr": (0.8, 0.8, 0.8, 0.2)}


def _config(style: str, size: int = SIZE) -> AugmentationConfig:
    return AugmentationConfig(size, (0.08, 1.0), JITTER[style], solarize_prob=0.2 * (style == "byol"), style=style)


@cache
def _images() -> list[Image.Image]:
    """200 pictures of 320 × 240 and less, saturated and gray, small enough to be enlarged, some of extreme values."""
    rng = np.random.RandomState(0)
    images = []
    for i in range(200):
        left, top, width, height = rng.randint(0, 100), rng.randint(0, 80), rng.randint(40, 200), rng.randint(40, 150)
        pixels = np.asarray(pictures()[i % 6])[top : top + height, left : left + width].astype(float)
        pixels = (pixels - 128) * (1, 3)[i % 2] + 128  # clipped: whole areas of 0 and 255
        pixels = pixels[..., [1, 1, 1]] if i % 10 == 0 else pixels
        images.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    return images


def _views(style: str, images: list[Image.Image], size: int = SIZE) -> list[ViewParams]:
    config = _config(style, size)
    return [sample_params(config, *image.size, philox_generator(1, 0, i, 0)) for i, image in enumerate(images)]


def _rendered(name: str, style: str, images: list[Image.Image], views: list[ViewParams]) -> np.ndarray:
    """What the network would see, (N, 3, SIZE, SIZE)."""
    pipeline = build_pipeline(name, style)
    buffer = BatchBuffer(pipeline, len(images), 1, SIZE)
    for image, view in zip(images, views, strict=True):
        buffer.add(pipeline.decode(image, b""), [view])
    return pipeline.finish(buffer.collate(), torch.device("cpu"))[0].numpy()


@cache
def _formulas(style: str) -> np.ndarray:
    pairs = zip(_images(), _views(style, _images()), strict=True)
    return np.stack([released_formulas.view(np.asarray(image), view, SIZE, style) for image, view in pairs])


def _gaps(name: str, style: str) -> tuple[float, float]:
    """Mean and greatest difference from the formulas on the 200 images, in levels."""
    seen = _rendered(name, style, _images(), _views(style, _images())).transpose(0, 2, 3, 1)
    if style == "byol":
        seen = seen * np.array([0.229, 0.224, 0.225]) + np.array([0.485, 0.456, 0.406])
    gaps = 255 * np.abs(seen - _formulas(style))
    return float(gaps.mean()), float(gaps.max())


@pytest.mark.parametrize("name", ["pil", "opencv"])
@pytest.mark.parametrize("style", RELEASED)
def test_200_views_equal_the_formulas(style: str, name: str) -> None:
    mean, greatest = _gaps(name, style)
    assert mean <= MEAN and greatest <= GREATEST, (mean, greatest)


@pytest.mark.slow
@pytest.mark.parametrize("style", RELEASED)
def test_200_photos_equal_the_formulas(style: str) -> None:
    if not PHOTOS.is_dir():
        pytest.skip(f"{PHOTOS} is not there")
    images = [Image.open(path).convert("RGB") for path in sorted(PHOTOS.rglob("*.*"))]
    for image, view in zip(images, _views(style, images, 224), strict=True):
        ours = released.released_view(np.asarray(image), view, 224, style).transpose(1, 2, 0)
        gaps = 255 * np.abs(ours - released_formulas.view(np.asarray(image), view, 224, style))
        assert gaps.mean() <= MEAN and gaps.max() <= GREATEST, (view, gaps.mean(), gaps.max())


def _adjusted_otherwise(step: str, other: Callable[[np.ndarray, float], np.ndarray]) -> Callable[..., np.ndarray]:
    right = released._adjust
    return lambda image, name, f, style: other(image, f) if name == step else right(image, name, f, style)


def _antialiased(pixels: np.ndarray, size: int, style: str) -> np.ndarray:
    image = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32))[None]
    return torch.nn.functional.interpolate(image, (size, size), mode="bicubic", antialias=True)[0].numpy() / 255


def _image_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    return factor * (image - image.mean()) + image.mean()


def _gray_blend(image: np.ndarray, factor: float) -> np.ndarray:
    gray = np.tensordot(released.LUMA, image, 1)
    return gray + factor * (image - gray)


def _repeat_edges(right: Callable[..., np.ndarray], image: np.ndarray, sigma: float) -> np.ndarray:
    ones = right(np.ones_like(image), sigma)
    return right(image, sigma) / ones


def _long_blur(right: Callable[..., np.ndarray], image: np.ndarray, sigma: float) -> np.ndarray:
    wide = np.pad(image, ((0, 0), (SIZE, SIZE), (SIZE, SIZE)))
    return right(wide, sigma)[:, SIZE:-SIZE, SIZE:-SIZE]


WRONG = {
    "contrast about the image's mean": (
        "_adjust",
        _adjusted_otherwise("contrast", _image_contrast),
    ),
    "saturation as a blend with gray": ("_adjust", _adjusted_otherwise("saturation", _gray_blend)),
    "additive brightness in simclr, factors in byol": (
        "_adjust",
        lambda x, name, f, style, right=released._adjust: right(x, name, f, OTHER[style]),
    ),
    "hue turned the other way": (
        "_adjust",
        lambda x, name, f, style, right=released._adjust: right(x, name, -f if name == "hue" else f, style),
    ),
    "antialias": ("resize", _antialiased),
    "the other style's resize": (
        "resize",
        lambda x, size, style, right=released.resize: right(x, size, OTHER[style]),
    ),
    "no clipping": ("_clip", lambda image: image),
    "edges repeated under the blur": ("blur", lambda x, sigma, right=released.blur: _repeat_edges(right, x, sigma)),
    "a kernel three times as long": ("blur", lambda x, sigma, right=released.blur: _long_blur(right, x, sigma)),
}


@pytest.mark.parametrize("style", RELEASED)
@pytest.mark.parametrize("name", WRONG)
def test_wrong_arithmetic_is_noticed(monkeypatch: pytest.MonkeyPatch, name: str, style: str) -> None:
    monkeypatch.setattr(released, *WRONG[name])
    mean, greatest = _gaps("pil", style)
    assert mean > 100 * MEAN and greatest > 100 * GREATEST, (mean, greatest)


@pytest.mark.parametrize(("width", "height"), [(400, 300), (500, 120), (90, 400), (32, 32)])
@pytest.mark.parametrize("style", RELEASED)
def test_crops_are_distributed_as_released(style: str, width: int, height: int) -> None:
    config = _config(style)
    ours = np.array([sample_params(config, width, height, philox_generator(0, 0, i, 0)).box for i in range(3000)])
    rng, box = random.Random(0), getattr(released_formulas, f"{style}_box")
    theirs = np.array([box(0.08, width, height, rng) for _ in range(3000)])
    assert all(_quantiles_agree(ours[:, column], theirs[:, column]) for column in range(4))
    areas = [one[:, 2] * one[:, 3] / (width * height) for one in (ours, theirs)]
    assert _quantiles_agree(*areas)
    assert areas[0].min() >= (0.1 if style == "simclr" else 0.0)
    assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= (height, width)).all()


def test_crop_that_never_fits_is_the_whole_image() -> None:
    view = sample_params(_config("simclr"), 3000, 20, philox_generator(0, 0, 0, 0))
    assert view.box == (0, 0, 20, 3000)
    assert sample_params(_config("byol"), 1, 1, philox_generator(0, 0, 0, 0)).box == (0, 0, 1, 1)


@pytest.mark.parametrize("style", RELEASED)
def test_views_depend_neither_on_workers_nor_on_start_nor_on_the_pipeline(images: Path, style: str) -> None:
    def load(workers: int, start: int, pipeline: str) -> list[torch.Tensor]:
        dataset = MultiViewDataset(find_images(str(images)), _config(style, 32), seed=5, pipeline=pipeline)
        sampler = ResumableBatchSampler(len(dataset), 4, 5, start=start, stop=5)
        return [view for batch in BatchLoader(dataset, sampler, workers, torch.device("cpu")) for view in batch.views]

    whole = load(0, 0, "pil")
    assert all(map(torch.equal, whole, load(2, 0, "opencv"))) and all(map(torch.equal, whole[6:], load(1, 3, "pil")))
    assert whole[0].dtype == torch.float32


def test_simclr_sees_the_0_to_1_scale_and_its_backbone_says_so() -> None:
    view = replace(_views("simclr", _images())[1], jitter=(), gray=False, blur=None)
    seen = _rendered("pil", "simclr", _images()[1:2], [view])
    assert 0 <= seen.min() < 0.1 and 0.9 < seen.max() <= 1
    assert (preprocessing_block("simclr")["mean"], preprocessing_block("simclr")["std"]) == ([0.0] * 3, [255.0] * 3)
    assert preprocessing_block("byol") == preprocessing_block()


def test_monitors_scale_images_as_the_style_does() -> None:
    from pretrain.engine.monitors import KnnMonitor

    cfg, images = defaults(), torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2)
    cfg.AUGMENT.STYLE = "simclr"
    trainer: Any = SimpleNamespace(method=SimpleNamespace(encoder=build_encoder("resnet18")[0]))
    unread: Any = ()
    extractor = KnnMonitor(cfg, unread, Path(), 1).extractor(trainer)
    assert torch.equal(extractor.preprocess(images), images / 255)


def test_crops_pipeline_and_unknown_styles_are_refused() -> None:
    cfg = defaults()
    cfg.AUGMENT.STYLE, cfg.DATA.PIPELINE = "byol", "crops"
    with pytest.raises(UserError, match=r"DATA\.PIPELINE is crops, which AUGMENT\.STYLE byol lacks; set pil or opencv"):
        check_config(cfg)
    cfg.AUGMENT.STYLE = "tensorflow"
    with pytest.raises(UserError, match=r"AUGMENT\.STYLE"):
        check_config(cfg)
