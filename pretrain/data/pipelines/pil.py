"""The released code's way: torchvision's transforms on Pillow images, to the bit."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from pretrain.data.augment import View, apply
from pretrain.data.decode import to_rgb
from pretrain.data.pipelines.rendering import Rendering
from pretrain.data.preprocessing import normalise


class Pil(Rendering):
    """Everything in a loader process but for scaling and normalisation."""

    def pixels(self, image: Image.Image, content: bytes) -> Image.Image:
        """A decoded image."""
        return to_rgb(image, content)

    def size(self, pixels: Image.Image) -> tuple[int, int]:
        """Width and height."""
        return pixels.size

    def render(self, pixels: Image.Image, view: View, out: np.ndarray) -> None:
        """Write one view into `out`."""
        np.copyto(out, np.asarray(apply(pixels, view, len(out))))

    def finish_view(self, views: torch.Tensor, draws: torch.Tensor | None) -> torch.Tensor:
        """Normalise."""
        return normalise(views)
