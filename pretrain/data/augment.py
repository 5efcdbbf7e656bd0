"""MoCo v2's augmentation as in the released SimSiam: sampling of the parameters is separate from their application.

Source: facebookresearch/simsiam main_simsiam.py (torchvision transforms on Pillow images) and simsiam/loader.py.
Solarization, which neither has, follows the blur as in BYOL (deepmind-research byol/utils/augmentations.py; BYOL flips
the view first, which does not affect the other steps). AUGMENT.STYLE byol and simclr have the crops and normalization
of the released code of these; `pretrain/data/pipelines/released.py` has their arithmetic.
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

Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""

Range = tuple[float, float]

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
    crop_scale: Range = (0.2, 1.0)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_prob: float = 0.8
    gray_prob: float = 0.2
    blur_prob: float = 0.5
    blur_sigma: Range = (0.1, 2.0)
    solarize_prob: float = 0.0
    flip_prob: float = 0.5
    style: str = "torchvision"


@dataclass(frozen=True)
class ViewParams:
    """Sampled parameters of one view.

    Attributes:
        box: the crop.
        jitter: names of `ADJUSTMENTS` with their factors, in the order of application; empty for no jitter. In style
            byol, brightness is increased by its factor − 1.
        gray: whether to convert to grayscale.
        blur: radius of the Gaussian blur in pixels of the view, or None.
        solarize: whether to invert values of `SOLARIZE_THRESHOLD` and above.
        flip: whether to flip horizontally.
    """

    box: Box
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
        box=BOX_SAMPLERS[config.style](config.crop_scale, width, height, rng),
        jitter=_sample_jitter(config.jitter, rng) if rng.random() < config.jitter_prob else (),
        gray=rng.random() < config.gray_prob,
        blur=_uniform(rng, *config.blur_sigma) if rng.random() < config.blur_prob else None,
        solarize=rng.random() < config.solarize_prob,
        flip=rng.random() < config.flip_prob,
    )


def _sample_box(scale: Range, width: int, height: int, rng: np.random.Generator) -> Box:
    """torchvision's RandomResizedCrop: ten tries at a box within the image, then the largest valid central crop."""
    for _ in range(10):
        area = width * height * _uniform(rng, *scale)
        ratio = math.exp(_uniform(rng, *LOG_RATIO))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1)), h, w
    low, high = map(math.exp, LOG_RATIO)
    w, h = min(width, round(height * high)), min(height, round(width / low))
    return (height - h) // 2, (width - w) // 2, h, w


def _byol_box(scale: Range, width: int, height: int, rng: np.random.Generator) -> Box:
    """BYOL's crop: a single try, whose sides are cut to the image's (byol/utils/dataset.py)."""
    area, ratio = width * height * _uniform(rng, *scale), math.exp(_uniform(rng, *LOG_RATIO))
    w = max(1, min(width, round(math.sqrt(area * ratio))))
    h = max(1, min(height, round(math.sqrt(area / ratio))))
    return int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1)), h, w


def _simclr_box(scale: Range, width: int, height: int, rng: np.random.Generator) -> Box:
    """SimCLR's crop: 100 tries at a box that covers a tenth of the image, then the whole image.

    Ratio and height are uniform, and the last position of a box is never chosen, as in the kernel that it calls
    (tensorflow/core/kernels/image/sample_distorted_bounding_box_op.cc).
    """
    least, most = (part * width * height for part in scale)
    for _ in range(100):
        ratio = _uniform(rng, 3 / 4, 4 / 3)
        low, high = round(math.sqrt(least / ratio)), min(height, round(math.sqrt(most / ratio)))
        while round(high * ratio) > width:
            high -= 1
        h = min(low, high) + int(rng.random() * (max(0, high - low) + 1))
        h += h * round(h * ratio) < least
        h -= h * round(h * ratio) > most
        w = round(h * ratio)
        if h <= height and w <= width and max(1, least, 0.1 * width * height) <= h * w <= most:
            return int(rng.random() * max(1, height - h)), int(rng.random() * max(1, width - w)), h, w
    return 0, 0, height, width


BOX_SAMPLERS = {"torchvision": _sample_box, "byol": _byol_box, "simclr": _simclr_box}
"""How a crop is sampled, by AUGMENT.STYLE."""


def _sample_jitter(strength: tuple[float, ...], rng: np.random.Generator) -> tuple[tuple[str, float], ...]:
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


def normalize(images: torch.Tensor, style: str = "torchvision") -> torch.Tensor:
    """Convert RGB images (N, 3, H, W) of levels 0…255 to float32, scaled to 0…1, minus mean, over std; same device."""
    # In place, as allocating took most of the time on a CPU. Copying the constants does not synchronize the device.
    mean, std = (torch.tensor(one).view(1, 3, 1, 1).to(images.device, non_blocking=True) for one in mean_and_std(style))
    return images.div(255).sub_(mean).div_(std)


def mean_and_std(style: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """MEAN and STD; 0 and 1 in style simclr, whose network sees the 0…1 scale."""
    return ((0.0,) * 3, (1.0,) * 3) if style == "simclr" else (MEAN, STD)


def preprocessing_block(style: str = "torchvision") -> dict[str, Any]:
    """The preprocessing that a backbone file records (0…255 scale, see docs/reference/formats.md)."""
    mean, std = ([round(255 * value, 3) for value in one] for one in mean_and_std(style))
    return {"channel_order": "RGB", "mean": mean, "std": std, "stride_in_1x1": False}
