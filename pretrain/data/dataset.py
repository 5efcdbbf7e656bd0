"""Samples: augmented views of images, as a function of (seed, epoch, index)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from pretrain.data.augment import AugmentationConfig, sample_params
from pretrain.data.decode import CONDITIONS, REPLACED, UnreadableImage, decode
from pretrain.data.index import ImageIndex
from pretrain.data.pipelines import build_pipeline
from pretrain.data.pipelines.base import BatchBuffer
from pretrain.data.sampler import SECOND_PAIR, VIEWS, philox_generator
from ssl_transfer.errors import UserError

UNREADABLE = ("error", "replace")
"""Values of DATA.UNREADABLE."""

MAX_REPLACEMENTS = 100
"""After so many unreadable images in a row the run stops: the data as a whole are broken."""


class Batch(NamedTuple):
    """A batch of training samples.

    Attributes:
        views: two tensors (N, 3, H, W) (one or four, for a method that takes so many): levels 0…255 from a loader
            worker, normalized floats in the trainer.
        indices: (N,) int64, the samples' positions in the image index.
        labels: (N,) int64 classes, for a method that needs them; on the training device in the trainer.
        condition_counts: (len(CONDITIONS),) int64, number of images that meet each condition; set by loader workers.
        view_params: one float32 tensor (N, 12) per view, if the pipeline augments on the device; set by loader workers.
    """

    views: tuple[torch.Tensor, ...]
    indices: torch.Tensor
    labels: torch.Tensor | None = None
    condition_counts: torch.Tensor | None = None
    view_params: tuple[torch.Tensor, ...] | None = None


class MultiViewDataset(Dataset[Batch | str]):
    """Independently augmented views of each image: two, or one, or two pairs.

    Args:
        index: the images.
        augmentation: distribution of the views' parameters.
        seed: the run's seed.
        views: 2; or 1, the first of them; or 4, two pairs.
        pipeline: a value of DATA.PIPELINE.
        unreadable: `error`; or `replace`: the next readable image of the index, in the views sampled for the original
            position, replaces an unreadable one. Which images are replaced depends only on the files. A file that is
            missing or not permitted is always an error, because it may be readable when the run is resumed.
        second_augmentation: distribution for the second view of each pair; None for the same.
        labels: (len(index),) int64 classes, for a method that needs them. A replacement image has its own label.
    """

    def __init__(
        self,
        index: ImageIndex,
        augmentation: AugmentationConfig,
        seed: int,
        *,
        views: int = 2,
        pipeline: str = "pil",
        unreadable: str = "error",
        second_augmentation: AugmentationConfig | None = None,
        labels: np.ndarray | None = None,
    ) -> None:
        self.index, self.size, self.seed, self.labels = index, augmentation.size, seed, labels
        self.purposes = (*VIEWS, *SECOND_PAIR)[:views]
        pair = (augmentation, second_augmentation or augmentation)
        self.augmentations = (*pair, *pair)[:views]
        self.pipeline, self.replace = build_pipeline(pipeline, augmentation.style), unreadable == "replace"

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: tuple[int, int]) -> Batch | str:
        """The sample of (epoch, index) as a batch of one."""
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Batch | str:
        """The batch of samples (epoch, index), or an error message if a file cannot be read.

        An exception would reach the trainer as a page of traceback, so the loader raises the message there.
        """
        buffer = BatchBuffer(self.pipeline, len(keys), len(self.purposes), self.size)
        counts: Counter[str] = Counter()
        positions = []
        for epoch, index in keys:
            try:
                pixels, conditions, position = self._read(index)
            except UserError as error:
                return str(error)
            counts.update(conditions)
            positions.append(position)
            width, height = self.pipeline.image_size(pixels)
            views = zip(self.augmentations, self.purposes, strict=True)
            buffer.add(
                pixels,
                [sample_params(a, width, height, philox_generator(self.seed, epoch, index, p)) for a, p in views],
            )
        collated = buffer.collate()
        return Batch(
            collated.views,
            torch.tensor([index for _, index in keys]),
            None if self.labels is None else torch.from_numpy(self.labels[positions]),
            condition_counts=torch.tensor([counts[condition] for condition in CONDITIONS]),
            view_params=collated.params,
        )

    def _read(self, index: int) -> tuple[Any, Sequence[str], int]:
        """Pixels, conditions and position of an image, or of its replacement."""
        for step in range(min(MAX_REPLACEMENTS, len(self.index))):
            position = (index + step) % len(self.index)
            try:
                pixels, conditions = decode(self.index.path(position), self.pipeline.decode)
            except UnreadableImage as error:
                if not self.replace:
                    raise UnreadableImage(f"{error}; to train without it: DATA.UNREADABLE replace") from error
                last = error
                continue
            return pixels, conditions if step == 0 else (*conditions, REPLACED), position
        raise UserError(f"{step + 1} images in a row cannot be read; the last: {last}") from last
