"""Samples: two augmented views of one image, as a function of (seed, epoch, index) alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.utils.data import Dataset

from common.errors import UserError
from pretrain.data.augment import Recipe, draw, render
from pretrain.data.decode import decode_rgb
from pretrain.data.index import ImageIndex
from pretrain.data.randomness import SECOND_PAIR, VIEWS, stream


class Batch(NamedTuple):
    """What a training step gets.

    Attributes:
        views: two tensors (N, 3, H, W) (four for a method that takes two pairs): uint8 as they leave the loader's
            processes, normalised floats in the trainer.
        indices: (N,) int64, the samples' places in the folder index.
    """

    views: tuple[torch.Tensor, ...]
    indices: torch.Tensor


class Sample(NamedTuple):
    """One image's views, uint8 (3, H, W) each, and its number in the folder index."""

    views: tuple[torch.Tensor, ...]
    number: int


class TwoViews(Dataset[Sample | str]):
    """Two views of each image, or two pairs of them, drawn independently by the same recipe.

    Args:
        index: the images.
        how: how views are drawn.
        seed: the run's seed.
        views: 2, or 4.
    """

    def __init__(self, index: ImageIndex, how: Recipe, seed: int, views: int = 2) -> None:
        self.index, self.how, self.seed = index, how, seed
        self.purposes = (*VIEWS, *SECOND_PAIR)[:views]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: tuple[int, int]) -> Sample | str:
        """The sample of (epoch, index); where its file cannot be read, the line that says so.

        An exception would cross from a worker to the trainer as a page of traceback; `collate` passes the line on.
        """
        epoch, index = key
        try:
            image = decode_rgb(self.index.path(index))
        except UserError as error:
            return str(error)
        views = [
            render(image, draw(self.how, *image.size, stream(self.seed, epoch, index, purpose)), self.how.size)
            for purpose in self.purposes
        ]
        return Sample(tuple(views), index)


def collate(samples: list[Sample | str]) -> Batch | str:
    """Stack samples to a batch; the first unreadable file's line takes its place."""
    read: list[Sample] = []
    for sample in samples:
        if isinstance(sample, str):
            return sample
        read.append(sample)
    views = [torch.stack(view) for view in zip(*(sample.views for sample in read), strict=True)]
    return Batch(tuple(views), torch.tensor([sample.number for sample in read]))
