"""The released views of BYOL and SimCLR rewritten in float64, pixel by pixel formulas, apart from `released.py`.

Sources: byol/utils/{augmentations,dataset}.py of google-deepmind/deepmind-research at f5de0ed, data_util.py of
google-research/simclr at 383d414, tensorflow/core/kernels/image/{resize_bicubic,sample_distorted_bounding_box}_op.cc.
"""

from __future__ import annotations

import math
import random

import numpy as np

from pretrain.data.augment import ViewParams

Array = np.ndarray


def view(pixels: Array, params: ViewParams, size: int, style: str) -> Array:
    """One view of uint8 (height, width, 3): float64 (size, size, 3), 0…1."""
    top, left, height, width = params.box
    crop = pixels[top : top + height, left : left + width].astype(np.float64) / 255
    x = np.einsum("ia,jb,abc->ijc", _matrix(height, size, style), _matrix(width, size, style), crop, optimize=True)
    x = x.clip(0, 1) if style == "byol" else x
    x = x[:, ::-1] if params.flip else x
    for name, factor in params.jitter:
        x = _STEPS[name](x, factor, style).clip(0, 1)
    if params.gray:
        x = np.repeat((x * [0.2989, 0.5870, 0.1140]).sum(2, keepdims=True), 3, axis=2)
    x = x.clip(0, 1)
    if params.blur is not None:
        band = _band(size, params.blur)
        x = np.einsum("ia,jb,abc->ijc", band, band, x, optimize=True)
    if params.solarize:
        x = np.where(x >= 0.5, 1 - x, x)
    return x.clip(0, 1)


def _matrix(count: int, size: int, style: str) -> Array:
    """(size, count): each output pixel's weights, from the cubic's definition by distance, in 1/1024 of a pixel."""
    matrix = np.zeros((size, count))
    for out in range(size):
        at = (out + 0.5) * count / size - 0.5 if style == "byol" else out * count / size
        at = math.floor(at) + round((at - math.floor(at)) * 1024) / 1024
        for pixel in range(math.floor(at) - 1, math.floor(at) + 4):
            weight = _cubic(abs(at - pixel), -0.5 if style == "byol" else -0.75)
            if style == "byol" and not 0 <= pixel < count:
                continue
            matrix[out, min(max(pixel, 0), count - 1)] += weight
    return matrix / matrix.sum(1, keepdims=True)


def _cubic(d: float, a: float) -> float:
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def _band(size: int, sigma: float) -> Array:
    """(size, size): a normalized Gaussian of 2 · (size // 20) + 1 taps, cut off outside the image."""
    radius = int(size / 10 / 2)
    taps = {d: math.exp(-(d**2) / (2 * sigma**2)) for d in range(-radius, radius + 1)}
    total = sum(taps.values())
    return np.array([[taps.get(i - j, 0.0) / total for j in range(size)] for i in range(size)])


def _brightness(x: Array, factor: float, style: str) -> Array:
    return x + (factor - 1) if style == "byol" else x * factor


def _contrast(x: Array, factor: float, style: str) -> Array:
    means = x.reshape(-1, 3).sum(0) / (x.shape[0] * x.shape[1])
    return factor * (x - means) + means


def _to_hsv(x: Array) -> tuple[Array, Array, Array]:
    r, g, b = x[..., 0], x[..., 1], x[..., 2]
    v, low = x.max(2), x.min(2)
    with np.errstate(divide="ignore", invalid="ignore"):
        s = np.where(v > 0, (v - low) / v, 0)
        norm = np.where(v > low, 1 / (6 * (v - low)), 0)
    h = np.where(r == v, norm * (g - b), np.where(g == v, norm * (b - r) + 1 / 3, norm * (r - g) + 2 / 3))
    h = np.where(v > low, h, 0)
    return np.where(h < 0, h + 1, h), s, v


def _to_rgb(h: Array, s: Array, v: Array) -> Array:
    sixth = h % 1 * 6
    chroma = s * v
    second = chroma * (1 - np.abs(sixth % 2 - 1))
    none = np.zeros_like(chroma)
    order = [(chroma, second, none), (second, chroma, none), (none, chroma, second)]
    order += [(none, second, chroma), (second, none, chroma), (chroma, none, second)]
    sector = np.floor(sixth).astype(int) % 6
    return np.stack([np.choose(sector, [rgb[c] for rgb in order]) + v - chroma for c in range(3)], axis=2)


def _saturation(x: Array, factor: float, style: str) -> Array:
    h, s, v = _to_hsv(x)
    return _to_rgb(h, np.clip(s * factor, 0, 1), v)


def _hue(x: Array, delta: float, style: str) -> Array:
    h, s, v = _to_hsv(x)
    return _to_rgb((h + delta) % 1, s, v)


_STEPS = {"brightness": _brightness, "contrast": _contrast, "saturation": _saturation, "hue": _hue}


def byol_box(low: float, width: int, height: int, rng: random.Random) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop of at least `low` of the area."""
    area = rng.uniform(low, 1) * width * height
    ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    w, h = min(width, round((area * ratio) ** 0.5)), min(height, round((area / ratio) ** 0.5))
    return rng.randint(0, height - h), rng.randint(0, width - w), h, w


def simclr_box(low: float, width: int, height: int, rng: random.Random) -> tuple[int, int, int, int]:
    """The same by TensorFlow's sampler of distorted boxes: 100 tries, the object is the image, 0.1 of it covered."""
    for _ in range(100):
        ratio = 0.75 + rng.random() * (4 / 3 - 0.75)
        shortest, tallest = round((low * width * height / ratio) ** 0.5), round((width * height / ratio) ** 0.5)
        if round(tallest * ratio) > width:
            tallest = int((width + 0.5 - 1e-7) / ratio)
            tallest -= round(tallest * ratio) > width
        tallest = min(tallest, height)
        h = rng.randint(shortest, tallest) if shortest < tallest else tallest
        if h * round(h * ratio) < low * width * height:
            h += 1
        if h * round(h * ratio) > width * height:
            h -= 1
        w = round(h * ratio)
        if not (0 < w <= width and 0 < h <= height and low <= h * w / (width * height) <= 1):
            continue
        top = rng.randrange(height - h) if h < height else 0
        left = rng.randrange(width - w) if w < width else 0
        if h * w / (width * height) >= 0.1:
            return top, left, h, w
    return 0, 0, height, width
