"""The steps of the `pil` pipeline on uint8 arrays: OpenCV and libjpeg-turbo where Pillow is slow, torch for resizing.

Each function equals Pillow's within rounding; tests/pretrain/data/test_pipelines.py states the limits.
"""

from __future__ import annotations

import contextlib
import math

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from pretrain.data.augment import SOLARIZE_THRESHOLD, ViewParams
from pretrain.data.decode import is_plain_jpeg, to_rgb
from pretrain.data.pipelines.base import Pipeline

LEVELS = np.arange(256, dtype=np.float32)
SOLARIZED = np.where(LEVELS < SOLARIZE_THRESHOLD, LEVELS, 255 - LEVELS).astype(np.uint8)
DECODE_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
BOX_BLURS = 3


class OpenCVPipeline(Pipeline):
    """All steps in a loader worker, except scaling and normalization; an image is decoded once for all views."""

    def __init__(self) -> None:
        # Images this small gain nothing from threads, and OpenCV's threads do not survive the fork of a worker.
        cv2.setNumThreads(1)

    def decode(self, image: Image.Image, content: bytes) -> np.ndarray:
        """Decode to uint8 (height, width, 3).

        OpenCV decodes plain JPEGs; its libjpeg-turbo gives Pillow's pixels (tested). It would fill a damaged file with
        gray and convert CMYK differently, so Pillow decodes those and all other formats.
        """
        if image.format == "JPEG" and image.mode in ("RGB", "L") and is_plain_jpeg(content):
            with contextlib.suppress(cv2.error):
                array = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), DECODE_FLAGS)
                if array is not None and array.shape == (image.height, image.width, 3):
                    return array
        return np.array(to_rgb(image))

    def render(self, pixels: np.ndarray, params: ViewParams, out: np.ndarray) -> None:
        image = resized_crop(pixels, params.box, len(out))
        for name, factor in params.jitter:
            image = ADJUSTMENTS[name](image, factor)
        if params.gray:
            image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)  # one channel from here on
        if params.blur is not None:
            image = gaussian_blur(image, params.blur)
        if params.solarize:
            image = cv2.LUT(image, SOLARIZED)
        if params.flip:
            image = cv2.flip(image, 1)
        if image.ndim == 2:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
        out[:] = image


def resized_crop(pixels: np.ndarray, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    """Crop the box (top, left, height, width) and scale it to a square with Pillow's antialiased bilinear filter."""
    top, left, height, width = box
    crop = torch.from_numpy(pixels[top : top + height, left : left + width]).permute(2, 0, 1)
    scaled = interpolate(crop[None], (size, size), mode="bilinear", antialias=True)
    return cv2.merge(list(scaled[0].numpy()))  # numpy takes ten times as long to interleave the channels


def blur_kernel(radius: float) -> np.ndarray:
    """One-dimensional float32 kernel, of odd length, that equals Pillow's `GaussianBlur(radius)`: three box blurs.

    A box of radius r = l + a weights 2l + 1 pixels by 1 and one more on each side by a; l and a are chosen so that
    three boxes have the Gaussian's variance (Gwosdek et al., "Theoretical Foundations of Gaussian Convolution by
    Extended Box Filtering", 2011, which Pillow follows).

    Args:
        radius: the Gaussian's standard deviation in pixels, above 0.
    """
    variance = radius**2 / BOX_BLURS
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    edge = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    box = np.array([edge, *[1.0] * (2 * whole + 1), edge]) / (2 * (whole + edge) + 1)
    kernel = box
    for _ in range(BOX_BLURS - 1):
        kernel = np.convolve(kernel, box)
    return kernel.astype(np.float32)


def gaussian_blur(image: np.ndarray, radius: float) -> np.ndarray:
    """Pillow's GaussianBlur in one pass per direction; edges are repeated."""
    kernel = blur_kernel(radius)
    return cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)


def _blend_table(level: float, factor: float) -> np.ndarray:
    """Pillow's blend of `level` with all levels: `level` + factor × (value − `level`), truncated to uint8."""
    levels = np.float32(level) + np.float32(factor) * (LEVELS - np.float32(level))
    return np.clip(levels, 0, 255).astype(np.uint8)


def adjust_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with black."""
    return cv2.LUT(image, _blend_table(0, factor))


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the image's mean gray."""
    mean = int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return cv2.LUT(image, _blend_table(mean, factor))


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the grayscale image."""
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, factor, gray, 1 - factor, -0.5)  # Pillow truncates where OpenCV rounds


def adjust_hue(image: np.ndarray, factor: float) -> np.ndarray:
    """Rotate the hue by `factor` of a full circle, in torchvision's steps of 1/255."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(int(factor * 255) % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


ADJUSTMENTS = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}
