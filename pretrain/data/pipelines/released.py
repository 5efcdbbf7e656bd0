"""Views with the arithmetic of the released code of BYOL and SimCLR (AUGMENT.STYLE byol and simclr), in float32.

Sources: byol/utils/{augmentations,dataset}.py of google-deepmind/deepmind-research at f5de0ed; data_util.py of
google-research/simclr at 383d414 (its `simclrv2`), and TensorFlow's kernels for what these call. The two differ in
brightness, in the resize and in what is clipped before the jitter. numpy in one thread, so that a view's bits do not
depend on the number of loader workers.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from pretrain.data.augment import ViewParams
from pretrain.data.pipelines.base import Pipeline

LUMA = np.array([0.2989, 0.5870, 0.1140], dtype=np.float32)
TABLE = 1024
"""TensorFlow rounds a position between two pixels to this fraction of their distance."""


class ReleasedPipeline(Pipeline):
    """Another pipeline's decoding, and views in float32: all steps in a loader worker, except the normalization."""

    dtype = torch.float32

    def __init__(self, decoder: Pipeline, style: str) -> None:
        self.decoder, self.style = decoder, style

    def decode(self, image: Image.Image, content: bytes) -> np.ndarray:
        return np.asarray(self.decoder.decode(image, content))

    def render(self, pixels: np.ndarray, params: ViewParams, out: np.ndarray) -> None:
        out[:] = 255 * released_view(pixels, params, len(out), self.style).transpose(1, 2, 0)


def released_view(pixels: np.ndarray, params: ViewParams, size: int, style: str) -> np.ndarray:
    """Render one view of a uint8 image (height, width, 3): float32 (3, size, size), 0…1."""
    top, left, height, width = params.box
    image = resize(pixels[top : top + height, left : left + width], size, style)
    if style == "byol":
        image = _clip(image)
    if params.flip:
        image = image[..., ::-1]
    for name, factor in params.jitter:
        image = _clip(_adjust(image, name, factor, style))
    if params.gray:
        image = np.broadcast_to(sum(map(np.multiply, LUMA, image)), image.shape)
    image = _clip(image)
    if params.blur is not None:
        image = blur(image, params.blur)
    if params.solarize:
        image = np.where(image < 0.5, image, 1 - image)
    return _clip(image)


def _clip(image: np.ndarray) -> np.ndarray:
    return np.clip(image, 0, 1)


def resize(pixels: np.ndarray, size: int, style: str) -> np.ndarray:
    """Resize uint8 (height, width, 3) by cubic convolution of 4 × 4 pixels, without antialiasing: float32 (3, ., .).

    BYOL: tf.image.resize of TensorFlow 2. SimCLR: tf.image.resize_bicubic of TensorFlow 1, whose pixels' corners, not
    their centres, are aligned, and which repeats the edge.
    """
    (rows, below), (columns, right) = (_taps(count, size, style) for count in pixels.shape[:2])
    image = sum(pixels[i] * w[:, None, None] for i, w in zip(rows, below, strict=True))
    image = sum(image[:, i] * w[:, None] for i, w in zip(columns, right, strict=True))
    return np.ascontiguousarray(image.transpose(2, 0, 1)) / np.float32(255)


def _taps(count: int, size: int, style: str) -> tuple[np.ndarray, np.ndarray]:
    """Indices and float32 weights, each (4, size), of the pixels of a line that make each new pixel."""
    scale, steps, half = np.float32(count / size), np.arange(size, dtype=np.float32), np.float32(0.5)
    place = (steps + half) * scale - half if style == "byol" else steps * scale
    first = np.floor(place)
    offset = np.rint((place - first) * TABLE) / TABLE
    a = -0.5 if style == "byol" else -0.75
    near, far = np.stack([offset, 1 - offset]), np.stack([1 + offset, 2 - offset])
    near, far = ((a + 2) * near - (a + 3)) * near**2 + 1, ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
    weights = np.stack([far[0], near[0], near[1], far[1]])
    indices = first.astype(int) + np.arange(-1, 3)[:, None]
    inside = np.clip(indices, 0, count - 1)
    if style == "byol":  # a pixel outside the image has no weight
        weights = weights * (inside == indices)
        weights /= weights.sum(0)
    return inside, weights.astype(np.float32)


def _adjust(image: np.ndarray, name: str, factor: float, style: str) -> np.ndarray:
    """One step of the colour jitter of float32 (3, H, W)."""
    f = np.float32(factor)
    if name == "brightness":
        return image + np.float32(factor - 1) if style == "byol" else image * f
    if name == "contrast":
        mean = image.mean((1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
        return f * (image - mean) + mean
    value = image.max(0)
    spread = value - image.min(0)
    if name == "saturation":  # HSV: the distance to the greatest channel is proportional to the saturation
        positive = (value > 0) & (spread > 0)
        saturation = np.divide(spread, value, out=np.ones_like(value), where=positive)
        return value - (value - image) * (np.clip(f * saturation, 0, 1) / saturation)
    return _turn_hue(image, value, spread, f)


def _turn_hue(image: np.ndarray, value: np.ndarray, spread: np.ndarray, turn: np.float32) -> np.ndarray:
    """Add `turn`, a fraction of a circle, to the hue; `value` and `spread` of the channels are kept."""
    red, green, blue = image
    safe = np.where(spread > 0, spread, 1)
    sector = np.where(green == value, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    turned = np.where(red == value, (green - blue) / safe, sector) + 6 * turn
    k = (turned + np.array([5, 3, 1], dtype=np.float32)[:, None, None]) % 6
    return value - spread * np.clip(np.minimum(k, 4 - k), 0, 1)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of float32 (3, size, size) by a kernel of a tenth of the side; pixels outside the image are 0."""
    size = image.shape[-1]
    radius = size // 20
    kernel = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).astype(np.float32)
    for _ in range(2):
        padded = np.pad(image, ((0, 0), (0, 0), (radius, radius)))
        total = np.zeros_like(image)
        for shift in np.flatnonzero(kernel > 1e-12):  # less is lost in float32
            total += kernel[shift] * padded[..., shift : shift + size]
        image = total.swapaxes(1, 2)
    return image
