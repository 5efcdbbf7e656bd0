"""MoCo v2's augmentation as the released SimSiam applies it: what is drawn is kept apart from how it is applied.

Source: facebookresearch/simsiam main_simsiam.py (torchvision transforms on Pillow images) and simsiam/loader.py.
Solarisation, which neither has, comes after the blur as in BYOL (deepmind-research byol/utils/augmentations.py; there
the view is mirrored first, which changes no other step).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from fvcore.common.config import CfgNode
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
"""Range of the logarithm of a crop's aspect ratio (torchvision's default)."""

SOLARIZE_FROM = 128
"""Solarisation inverts values from here on (BYOL, appendix B)."""

ADJUST: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
}


@dataclass(frozen=True)
class Recipe:
    """How views are drawn; the fields are the AUGMENT keys of the config, which explains them."""

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
class View:
    """One draw: everything that is random about one view.

    Attributes:
        box: the crop's top, left, height and width in pixels.
        jitter: names of `ADJUST` and their factors, in the order they are applied; empty where none is.
        gray: whether the colours are dropped.
        blur: radius of the Gaussian blur in pixels of the view, or None.
        solarize: whether values of 128 and above are inverted.
        flip: whether the view is mirrored.
    """

    box: tuple[int, int, int, int]
    jitter: tuple[tuple[str, float], ...]
    gray: bool
    blur: float | None
    solarize: bool
    flip: bool


def recipe(cfg: CfgNode) -> Recipe:
    """The first view's recipe, as a config's DATA.SIZE and AUGMENT spell it."""
    return Recipe(cfg.DATA.SIZE, **{key.lower(): value for key, value in cfg.AUGMENT.items() if key != "SECOND"})


def second_recipe(cfg: CfgNode) -> Recipe:
    """The second view's: the first's but for what AUGMENT.SECOND sets."""
    own = {key.lower(): value for key, value in cfg.AUGMENT.SECOND.items() if value != -1}
    return replace(recipe(cfg), **own)


def draw(how: Recipe, width: int, height: int, rng: np.random.Generator) -> View:
    """Draw one view of an image of `width` × `height` pixels."""
    return View(
        box=_draw_box(how.crop_scale, width, height, rng),
        jitter=_draw_jitter(how.jitter, rng) if rng.random() < how.jitter_prob else (),
        gray=rng.random() < how.gray_prob,
        blur=_uniform(rng, *how.blur_sigma) if rng.random() < how.blur_prob else None,
        solarize=rng.random() < how.solarize_prob,
        flip=rng.random() < how.flip_prob,
    )


def _draw_box(
    scale: tuple[float, float], width: int, height: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop: ten tries at a box within the image, then the largest central one allowed."""
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


def _draw_jitter(
    strength: tuple[float, float, float, float], rng: np.random.Generator
) -> tuple[tuple[str, float], ...]:
    """torchvision's ColorJitter: a factor each, in random order; strength 0 leaves a property alone."""
    factors = []
    for name, amount in zip(ADJUST, strength, strict=True):
        middle, lowest = (0.0, -amount) if name == "hue" else (1.0, max(0.0, 1.0 - amount))
        factors.append((name, _uniform(rng, lowest, middle + amount)))
    order = np.argsort([rng.random() for _ in factors])
    return tuple(factors[i] for i in order if strength[i] > 0)


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def apply(image: Image.Image, view: View, size: int) -> Image.Image:
    """One draw of an RGB image, `size` pixels square: the reference that every pipeline is held against."""
    image = F.resized_crop(image, *view.box, [size, size], InterpolationMode.BILINEAR)
    for name, factor in view.jitter:
        image = ADJUST[name](image, factor)
    if view.gray:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    if view.blur is not None:
        image = image.filter(ImageFilter.GaussianBlur(view.blur))
    if view.solarize:
        image = ImageOps.solarize(image, SOLARIZE_FROM)
    return F.hflip(image) if view.flip else image


def render(image: Image.Image, view: View, size: int) -> torch.Tensor:
    """Apply one draw to an RGB image.

    Returns:
        uint8 tensor of shape (3, size, size). Scaling to 0…1 and normalisation follow on the training device
        (`preprocessing.normalise`): the same numbers, a quarter of the bytes between processes.
    """
    return F.pil_to_tensor(apply(image, view, size))
