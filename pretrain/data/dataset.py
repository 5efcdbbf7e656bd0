"""Samples: augmented views of images, as a function of (seed, epoch, index) alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from common.errors import UserError
from pretrain.data.augment import Recipe, draw
from pretrain.data.decode import CONDITIONS, REPLACED, UnreadableImage, decode
from pretrain.data.index import ImageIndex
from pretrain.data.pipelines import pipeline
from pretrain.data.randomness import SECOND_PAIR, VIEWS, stream

UNREADABLE = ("error", "replace")
"""Valid values of DATA.UNREADABLE."""

TRIES = 100
"""Unreadable images in a row after which the data are taken to be broken as a whole."""


class Batch(NamedTuple):
    """What a training step gets.

    Attributes:
        views: two tensors (N, 3, H, W) (one, or four, for a method that takes so many): uint8 as they leave the
            loader's processes, normalised floats in the trainer.
        indices: (N,) int64, the samples' places in the folder index.
        labels: (N,) int64, their classes, for a method that needs them; on the device in the trainer.
        met: (len(CONDITIONS),) int64, how many of the images meet each condition; only as they leave the processes.
        draws: (N, 12) float32 a view, where the pipeline needs them on the device; only as they leave the processes.
    """

    views: tuple[torch.Tensor, ...]
    indices: torch.Tensor
    labels: torch.Tensor | None = None
    met: torch.Tensor | None = None
    draws: tuple[torch.Tensor, ...] | None = None


class TwoViews(Dataset[Batch | str]):
    """Two views of each image, or one, or two pairs of them, drawn independently.

    Args:
        index: the images.
        how: how views are drawn.
        seed: the run's seed.
        views: 2; or 1, the first of them; or 4, another pair.
        way: a pipeline's name.
        unreadable: `error`, or `replace`: the next image of the index that can be read takes an unreadable one's place.
            It is seen in the views drawn for that place. Which images are replaced depends on the files alone; one that
            is missing or may not be read is an error in any case, for it may be there again when the run is resumed.
        second: how each pair's second view is drawn, where it is not as the first.
        labels: (len(index),) int64, each image's class, for a method that needs them. An image that takes another's
            place brings its own.
    """

    def __init__(
        self,
        index: ImageIndex,
        how: Recipe,
        seed: int,
        views: int = 2,
        way: str = "pil",
        unreadable: str = "error",
        second: Recipe | None = None,
        labels: np.ndarray | None = None,
    ) -> None:
        self.index, self.size, self.seed, self.labels = index, how.size, seed, labels
        self.purposes = (*VIEWS, *SECOND_PAIR)[:views]
        self.recipes = (how, second or how, how, second or how)[:views]
        self.pipeline, self.replace = pipeline(way), unreadable == "replace"

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: tuple[int, int]) -> Batch | str:
        """A batch of one: the sample of (epoch, index)."""
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Batch | str:
        """The batch of samples (epoch, index); where a file cannot be read, the line that says so.

        An exception would cross from a worker to the trainer as a page of traceback; the loader raises the line there.
        """
        room = self.pipeline.room(len(keys), len(self.purposes), self.size)
        met: Counter[str] = Counter()
        taken = []
        for epoch, index in keys:
            try:
                pixels, found, number = self._read(index)
            except UserError as error:
                return str(error)
            met.update(found)
            taken.append(number)
            width, height = self.pipeline.size(pixels)
            ways = zip(self.recipes, self.purposes, strict=True)
            views = [draw(how, width, height, stream(self.seed, epoch, index, purpose)) for how, purpose in ways]
            room.add(pixels, views)
        content = room.content()
        return Batch(
            content.views,
            torch.tensor([index for _, index in keys]),
            None if self.labels is None else torch.from_numpy(self.labels[taken]),
            met=torch.tensor([met[condition] for condition in CONDITIONS]),
            draws=content.draws,
        )

    def _read(self, index: int) -> tuple[Any, Sequence[str], int]:
        """Pixels, conditions and number of an image, or of the one that takes its place."""
        for step in range(min(TRIES, len(self.index))):
            number = (index + step) % len(self.index)
            try:
                pixels, found = decode(self.index.path(number), self.pipeline.pixels)
            except UnreadableImage as error:
                if not self.replace:
                    raise
                last = error
                continue
            return pixels, found if step == 0 else (*found, REPLACED), number
        raise UserError(f"{step + 1} images in a row cannot be read; the last: {last}") from last
