"""MoCo v2's augmentation as in the released SimSiam: sampling of the parameters is separate from their application.

Source: facebookresearch/simsiam main_simsiam.py (torchvision transforms on Pillow images) and simsiam/loader.py.
Solarization, which neither has, follows the blur as in BYOL (deepmind-research byol/utils/augmentations.py; BYOL flips
the view first, which does not affect the other steps).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
"""Range of the logarithm of a crop's aspect ratio (torchvision's default)."""

SOLARIZE_THRESHOLD = 128
"""Solarization inverts values from this one on (BYOL, appendix B)."""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's per-channel mean and standard deviation, RGB, on the 0…1 scale."""

ADJUSTMENTS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
}
"""Steps of the colour jitter."""


@dataclass(frozen=True)
class AugmentationConfig:
    """Distribution of a view's parameters: size in pixels, and the AUGMENT keys (see pretrain/keys.py)."""

    size: int
    crop_scale: tuple[float, float] = (0.2, 1.0)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_prob: float = 0.8
    gray_prob: float = 0.2
    blur_prob: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize_prob: float = 0.0
    flip_prob: float = 0.5


@dataclass(frozen=True)
class ViewParams:
    """Sampled parameters of one view.

    Attributes:
        box: top, left, height and width of the crop in pixels.
        jitter: names of `ADJUSTMENTS` with their factors, in the order of application; empty for no jitter.
        gray: whether to convert to grayscale.
        blur: radius of the Gaussian blur in pixels of the view, or None.
        solarize: whether to invert values of `SOLARIZE_THRESHOLD` and above.
        flip: whether to flip horizontally.
    """

    box: tuple[int, int, int, int]
    jitter: tuple[tuple[str, float], ...]
    gray: bool
    blur: float | None
    solarize: bool
    flip: bool


def augmentation_config(cfg: CfgNode) -> AugmentationConfig:
    """The first view's augmentation, from DATA.SIZE and AUGMENT."""
    keys = {key.lower(): value for key, value in cfg.AUGMENT.items() if key != "SECOND"}
    return AugmentationConfig(cfg.DATA.SIZE, **keys)


def second_augmentation_config(cfg: CfgNode) -> AugmentationConfig:
    """The second view's augmentation: the first view's, with the values that AUGMENT.SECOND sets."""
    changed = {key.lower(): value for key, value in cfg.AUGMENT.SECOND.items() if value != -1}
    return replace(augmentation_config(cfg), **changed)


def sample_params(config: AugmentationConfig, width: int, height: int, rng: np.random.Generator) -> ViewParams:
    """Sample the parameters of one view of an image of `width` × `height` pixels."""
    return ViewParams(
        box=_sample_box(config.crop_scale, width, height, rng),
        jitter=_sample_jitter(config.jitter, rng) if rng.random() < config.jitter_prob else (),
        gray=rng.random() < config.gray_prob,
        blur=_uniform(rng, *config.blur_sigma) if rng.random() < config.blur_prob else None,
        solarize=rng.random() < config.solarize_prob,
        flip=rng.random() < config.flip_prob,
    )


def _sample_box(
    scale: tuple[float, float], width: int, height: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop: ten tries at a box within the image, then the largest valid central crop."""
    for _ in range(10):
        area = width * height * _uniform(rng, *scale)
        ratio = math.exp(_uniform(rng, *LOG_RATIO))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1)), h, w
    low, high = map(math.exp, LOG_RATIO)
    w, h = width, height
    if width / height < low:
        h = round(w / low)
    elif width / height > high:
        w = round(h * high)
    return (height - h) // 2, (width - w) // 2, h, w


def _sample_jitter(
    strength: tuple[float, float, float, float], rng: np.random.Generator
) -> tuple[tuple[str, float], ...]:
    """torchvision's ColorJitter: one factor per adjustment, in random order; strength 0 disables an adjustment."""
    factors = []
    for name, amount in zip(ADJUSTMENTS, strength, strict=True):
        middle, lowest = (0.0, -amount) if name == "hue" else (1.0, max(0.0, 1.0 - amount))
        factors.append((name, _uniform(rng, lowest, middle + amount)))
    order = np.argsort([rng.random() for _ in factors])
    return tuple(factors[i] for i in order if strength[i] > 0)


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def apply_to_image(image: Image.Image, params: ViewParams, size: int) -> Image.Image:
    """Render one view of an RGB image, `size` pixels square: the reference that every pipeline is tested against."""
    image = F.resized_crop(image, *params.box, [size, size], InterpolationMode.BILINEAR)
    for name, factor in params.jitter:
        image = ADJUSTMENTS[name](image, factor)
    if params.gray:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    if params.blur is not None:
        image = image.filter(ImageFilter.GaussianBlur(params.blur))
    if params.solarize:
        image = ImageOps.solarize(image, SOLARIZE_THRESHOLD)
    return F.hflip(image) if params.flip else image


def apply(image: Image.Image, params: ViewParams, size: int) -> torch.Tensor:
    """Render one view of an RGB image as a uint8 tensor of shape (3, size, size).

    `normalize` follows on the training device: same numbers, a quarter of the bytes between processes.
    """
    return F.pil_to_tensor(apply_to_image(image, params, size))


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Convert uint8 RGB images (N, 3, H, W) to float32, scaled to 0…1, minus MEAN, over STD; on the same device."""
    # In place, as allocating took most of the time on a CPU. Copying the constants does not synchronize the device.
    mean, std = (torch.tensor(one).view(1, 3, 1, 1).to(images.device, non_blocking=True) for one in (MEAN, STD))
    return images.div(255).sub_(mean).div_(std)


def preprocessing_block() -> dict[str, Any]:
    """The preprocessing that a backbone file records (0…255 scale, see docs/reference/formats.md)."""
    return {
        "channel_order": "RGB",
        "mean": [round(255 * value, 3) for value in MEAN],
        "std": [round(255 * value, 3) for value in STD],
        "stride_in_1x1": False,
    }
