"""The same steps on uint8 arrays: OpenCV and libjpeg-turbo for what is slow in Pillow, torch for the resizing.

Each function does what Pillow's does, to within rounding; tests/pretrain/data/test_pipelines.py states by how much.
"""

from __future__ import annotations

import contextlib

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from pretrain.data.augment import SOLARIZE_FROM, View
from pretrain.data.decode import to_rgb
from pretrain.data.jpeg import is_plain
from pretrain.data.pipelines.kernels import blur_kernel
from pretrain.data.pipelines.rendering import Rendering
from pretrain.data.preprocessing import normalise

LEVELS = np.arange(256, dtype=np.float32)
INVERTED = np.where(LEVELS < SOLARIZE_FROM, LEVELS, 255 - LEVELS).astype(np.uint8)
AS_STORED = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


class OpenCV(Rendering):
    """Everything in a loader process but for scaling and normalisation; an image is decoded once for all views."""

    def __init__(self) -> None:
        # Images this small gain nothing from threads, and OpenCV's do not outlive the fork of a loader process.
        cv2.setNumThreads(1)

    def pixels(self, image: Image.Image, content: bytes) -> np.ndarray:
        """uint8 (height, width, 3).

        Plain JPEGs go to OpenCV, whose libjpeg-turbo gives Pillow's pixels (tested). It would fill up a damaged file
        with gray and convert CMYK in its own way: those, and all other formats, stay Pillow's.
        """
        if image.format == "JPEG" and image.mode in ("RGB", "L") and is_plain(content):
            with contextlib.suppress(cv2.error):
                array = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), AS_STORED)
                if array is not None and array.shape == (image.height, image.width, 3):
                    return array
        return np.array(to_rgb(image))

    def size(self, pixels: np.ndarray) -> tuple[int, int]:
        """Width and height."""
        return pixels.shape[1], pixels.shape[0]

    def render(self, pixels: np.ndarray, view: View, out: np.ndarray) -> None:
        """Write one view into `out`."""
        image = resized_crop(pixels, view.box, len(out))
        for name, factor in view.jitter:
            image = ADJUST[name](image, factor)
        if view.gray:
            image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)  # one channel from here on
        if view.blur is not None:
            image = blurred(image, view.blur)
        if view.solarize:
            image = cv2.LUT(image, INVERTED)
        if view.flip:
            image = cv2.flip(image, 1)
        if image.ndim == 2:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
        out[:] = image

    def finish_view(self, views: torch.Tensor, draws: torch.Tensor | None) -> torch.Tensor:
        """Normalise."""
        return normalise(views)


def resized_crop(pixels: np.ndarray, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    """The box (top, left, height, width), scaled to `size` pixels square by Pillow's bilinear (antialiased) filter."""
    top, left, height, width = box
    crop = torch.from_numpy(pixels[top : top + height, left : left + width]).permute(2, 0, 1)
    scaled = interpolate(crop[None], (size, size), mode="bilinear", antialias=True)
    return cv2.merge(list(scaled[0].numpy()))  # numpy takes ten times as long to turn planes into pixels


def _blend_table(with_level: float, factor: float) -> np.ndarray:
    """Pillow's blend of a level with all others: `with_level` + factor × (value − `with_level`), cut off to a uint8."""
    levels = np.float32(with_level) + np.float32(factor) * (LEVELS - np.float32(with_level))
    return np.clip(levels, 0, 255).astype(np.uint8)


def adjust_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with black."""
    return cv2.LUT(image, _blend_table(0, factor))


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the image's mean gray."""
    mean = int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return cv2.LUT(image, _blend_table(mean, factor))


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the image's gray."""
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, factor, gray, 1 - factor, -0.5)  # Pillow cuts off what OpenCV rounds


def adjust_hue(image: np.ndarray, factor: float) -> np.ndarray:
    """Turn the hue by `factor` of a circle, in torchvision's steps of 1/255."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(int(factor * 255) % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def blurred(image: np.ndarray, radius: float) -> np.ndarray:
    """Pillow's GaussianBlur in one pass a direction; edges are repeated."""
    kernel = blur_kernel(radius)
    return cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)


ADJUST = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}
