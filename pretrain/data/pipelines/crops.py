"""Crops alone from the loader's processes; jitter, gray, blur, solarisation and mirroring batched on the device."""

from __future__ import annotations

import numpy as np
import torch

from pretrain.data.augment import View
from pretrain.data.pipelines.device import augmented
from pretrain.data.pipelines.opencv import OpenCV, resized_crop
from pretrain.data.preprocessing import normalise


class Crops(OpenCV):
    """OpenCV's decoding and resizing in a loader process, the rest where the training is."""

    needs_draws = True

    def render(self, pixels: np.ndarray, view: View, out: np.ndarray) -> None:
        """Write the crop into `out`."""
        out[:] = resized_crop(pixels, view.box, len(out))

    def finish_view(self, views: torch.Tensor, draws: torch.Tensor | None) -> torch.Tensor:
        """All but the crop, as drawn, then normalise."""
        assert draws is not None
        return normalise(augmented(views, draws))
