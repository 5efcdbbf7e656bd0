"""Base class of pipelines: from an image file to augmented views, partly in a loader worker, partly on the device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import get_worker_info

from pretrain.data.augment import ADJUSTMENTS, ViewParams, normalize

STEPS = tuple(ADJUSTMENTS)
"""Names of the colour jitter steps; packed parameters hold the index of a name."""

NO_STEP = -1.0
NO_BLUR = 0.0
WIDTH = 12
GRAY, BLUR, SOLARIZE, FLIP = 8, 9, 10, 11
"""Columns of packed parameters after the four pairs (jitter step, factor)."""


class CollatedBatch(NamedTuple):
    """What a loader worker sends to the training process.

    Attributes:
        views: one tensor (N, 3, size, size) of the pipeline's `dtype` per view.
        params: one float32 tensor (N, 12) per view (`pack_params`), if the pipeline augments on the device.
    """

    views: tuple[torch.Tensor, ...]
    params: tuple[torch.Tensor, ...] | None = None


class Pipeline(ABC):
    """Decode an image and render its views in a loader worker; finish them on the training device.

    Attributes:
        needs_params: whether `finish_view` needs the sampled parameters.
        dtype: of rendered views, levels 0…255. uint8 is a quarter of the bytes between processes.
        style: value of AUGMENT.STYLE.
    """

    needs_params = False
    dtype = torch.uint8
    style = "torchvision"

    @abstractmethod
    def decode(self, image: Image.Image, content: bytes) -> Any:
        """RGB pixels, in the form that `render` takes, of an opened image or of its file's content."""

    def image_size(self, pixels: Any) -> tuple[int, int]:
        """Width and height of decoded pixels."""
        return pixels.shape[1], pixels.shape[0]

    @abstractmethod
    def render(self, pixels: Any, params: ViewParams, out: np.ndarray) -> None:
        """Write one view into `out`, (size, size, 3) of `dtype`."""

    def finish_view(self, views: torch.Tensor, params: torch.Tensor | None) -> torch.Tensor:
        """Apply on the training device what `render` left out.

        Args:
            views: (N, 3, size, size) of `dtype`.
            params: (N, 12) float32 on the CPU (`pack_params`), if `needs_params`.

        Returns:
            Normalized float32 tensor of the same shape.
        """
        return normalize(views, self.style)

    def finish(self, batch: CollatedBatch, device: torch.device) -> list[torch.Tensor]:
        """Move each view to the device and finish it.

        Returns:
            One normalized float32 tensor (N, 3, size, size) per view.
        """
        params = batch.params or [None] * len(batch.views)
        pairs = zip(batch.views, params, strict=True)
        return [self.finish_view(view.to(device, non_blocking=True), sampled) for view, sampled in pairs]


class BatchBuffer:
    """Memory in which a loader worker collates a batch, sample by sample; nothing is stacked or copied later.

    Args:
        pipeline: renders the views.
        count: number of samples.
        views: views per sample.
        size: height and width of a view in pixels.
    """

    def __init__(self, pipeline: Pipeline, count: int, views: int, size: int) -> None:
        self.pipeline = pipeline
        nbytes = count * size * size * 3 * pipeline.dtype.itemsize
        shape = (count, size, size, 3)
        self.tensors = [_shared_bytes(nbytes).view(pipeline.dtype).view(shape) for _ in range(views)]
        self.arrays = [tensor.numpy() for tensor in self.tensors]
        self.params: list[Sequence[ViewParams]] = []

    def add(self, pixels: Any, params: Sequence[ViewParams]) -> None:
        """Render the views of the next sample."""
        for array, view in zip(self.arrays, params, strict=True):
            self.pipeline.render(pixels, view, array[len(self.params)])
        self.params.append(params)

    def collate(self) -> CollatedBatch:
        """The batch, after every sample was added."""
        views = tuple(tensor.permute(0, 3, 1, 2) for tensor in self.tensors)
        if not self.pipeline.needs_params:
            return CollatedBatch(views)
        packed = (torch.from_numpy(pack_params(params)) for params in zip(*self.params, strict=True))
        return CollatedBatch(views, tuple(packed))


def pack_params(params: Sequence[ViewParams]) -> np.ndarray:
    """(N, 12) float32: four pairs (jitter step, factor) in order, then gray, blur radius, solarize, flip."""
    rows = np.zeros((len(params), WIDTH), dtype=np.float32)
    rows[:, :8:2] = NO_STEP
    for row, view in zip(rows, params, strict=True):
        for i, (name, factor) in enumerate(view.jitter):
            row[2 * i : 2 * i + 2] = STEPS.index(name), factor
        row[GRAY:] = view.gray, view.blur or NO_BLUR, view.solarize, view.flip
    return rows


def _shared_bytes(count: int) -> torch.Tensor:
    """Uninitialized uint8 (count,), in shared memory in a loader worker (as torch's `default_collate` does)."""
    if get_worker_info() is None:
        return torch.empty(count, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(count)
    return torch.empty(0, dtype=torch.uint8).set_(storage)
