"""Pictures, draws and what a pipeline makes of them, in levels of 255."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter

from pretrain.data.augment import MEAN, STD, ViewParams
from pretrain.data.pipelines import build_pipeline
from pretrain.data.pipelines.base import BatchBuffer

SIZE = 96
PLAIN = ViewParams(box=(10, 20, 180, 200), jitter=(), gray=False, blur=None, solarize=False, flip=False)


class Limit(NamedTuple):
    """A step, and how far a fast pipeline may be from Pillow in it."""

    view: ViewParams
    mean: float
    greatest: int


def _jitter(name: str, factor: float) -> ViewParams:
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
def pictures() -> tuple[Image.Image, ...]:
    """Six of them, 320 × 240."""
    return tuple(_picture(seed) for seed in range(6))


def levels(name: str, images: list[Image.Image], views: list[ViewParams], size: int = SIZE) -> np.ndarray:
    """Views by a pipeline, as it would give them to the network, scaled back to levels: (N, size, size, 3)."""
    pipeline = build_pipeline(name)
    buffer = BatchBuffer(pipeline, len(images), 1, size)
    for image, view in zip(images, views, strict=True):
        buffer.add(pipeline.decode(image, b""), [view])
    (finished,) = pipeline.finish(buffer.collate(), torch.device("cpu"))
    assert finished.dtype == torch.float32 and finished.shape == (len(images), 3, size, size)
    scale = torch.tensor(STD).view(3, 1, 1), torch.tensor(MEAN).view(3, 1, 1)
    return (255 * (finished * scale[0] + scale[1])).permute(0, 2, 3, 1).numpy()
