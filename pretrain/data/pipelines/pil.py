"""The reference pipeline: torchvision's transforms on Pillow images, bit-exact with the released SimSiam code."""

from __future__ import annotations

import numpy as np
from PIL import Image

from pretrain.data.augment import ViewParams, apply_to_image
from pretrain.data.decode import to_rgb
from pretrain.data.pipelines.base import Pipeline


class PILPipeline(Pipeline):
    """All steps in a loader worker, except scaling and normalization."""

    def decode(self, image: Image.Image, content: bytes) -> Image.Image:
        return to_rgb(image, content)

    def image_size(self, pixels: Image.Image) -> tuple[int, int]:
        return pixels.size

    def render(self, pixels: Image.Image, params: ViewParams, out: np.ndarray) -> None:
        np.copyto(out, np.asarray(apply_to_image(pixels, params, len(out))))
