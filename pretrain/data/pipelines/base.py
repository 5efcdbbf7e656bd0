"""What the data set and the loader ask of a pipeline."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from pretrain.data.augment import View


class Pipeline(Protocol):
    """A way from a file to views: in a loader process up to `render`, on the training device from `finish` on.

    Attributes:
        needs_draws: whether `finish` reads what was drawn.
    """

    needs_draws: bool

    def pixels(self, image: Image.Image, content: bytes) -> Any:
        """RGB pixels, in whatever form `render` takes them, of an opened image or of its file's content."""

    def size(self, pixels: Any) -> tuple[int, int]:
        """Width and height."""

    def render(self, pixels: Any, view: View, out: np.ndarray) -> None:
        """Write one view into `out`, uint8 (size, size, 3)."""

    def finish(self, views: torch.Tensor, draws: torch.Tensor | None) -> torch.Tensor:
        """What is left to do on the training device.

        Args:
            views: uint8 (N, 3, size, size).
            draws: (N, 12) float32 on the CPU (`packed`), where they are needed.

        Returns:
            Normalised float32 of the same shape.
        """
