"""Which images form which batch: Detectron2's sampler and aspect-ratio grouping, replayed on indices only.

A batch list is a function of (sampler seed, rank, iteration): a run resumed at iteration k skips k lists, which decodes
nothing. Detectron2 groups images in the order in which its loader's workers return them, so the batches depend on the
number of workers; `order_of_workers` says which number is replayed, and any number of workers may load the result.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch


def index_stream(size: int, seed: int, rank: int, world_size: int) -> Iterator[int]:
    """A rank's share of `shuffle(range(size)) + shuffle(range(size)) + …`, split as by Detectron2's TrainingSampler."""
    return itertools.islice(_infinite_shuffles(size, seed), rank, None, world_size)


def _infinite_shuffles(size: int, seed: int) -> Iterator[int]:
    generator = torch.Generator()
    generator.manual_seed(seed)
    while True:
        yield from torch.randperm(size, generator=generator).tolist()


def interleave_workers(indices: Iterator[int], chunk: int, workers: int) -> Iterator[int]:
    """A rank's stream in the order in which Detectron2's loader returns it from several workers.

    Source: detectron2, data/common.py and torch's DataLoader: each worker in turn takes a chunk, then each in turn
    returns one image.

    Args:
        indices: the stream, infinite.
        chunk: images of one rank's batch.
        workers: number of workers; 0 and 1 change nothing.
    """
    if workers < 2:
        yield from indices
    while block := list(itertools.islice(indices, workers * chunk)):
        for place in range(len(block)):
            yield block[place % workers * chunk + place // workers]


def batch_stream(indices: Iterator[int], batch_size: int, wide: Sequence[bool] | None) -> Iterator[list[int]]:
    """Group a stream of indices into batches.

    Args:
        indices: a rank's stream.
        batch_size: images of one rank.
        wide: for each image, whether it is wider than high; a batch holds images of one kind, in the order of the
            stream. None: no grouping.
    """
    groups: tuple[list[int], list[int]] = ([], [])
    for index in indices:
        group = groups[0 if wide is None or wide[index] else 1]
        group.append(index)
        if len(group) == batch_size:
            yield group.copy()
            group.clear()


class DetectionBatchSampler:
    """The batch lists of one rank, from any iteration on; a sampler for `torch.utils.data.DataLoader(batch_size=None)`.

    Args:
        size: images in the training set.
        seed: the sampler's seed.
        batch_size: images of one rank.
        wide: see `batch_stream`.
        rank, world_size: this process among all.
        start: the first iteration wanted.
        stop: one past the last; None: infinite.
        order_of_workers: see `interleave_workers`.
    """

    def __init__(
        self,
        size: int,
        seed: int,
        batch_size: int,
        wide: Sequence[bool] | None,
        *,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        stop: int | None = None,
        order_of_workers: int = 0,
    ) -> None:
        self.size, self.seed, self.batch_size, self.wide = size, seed, batch_size, wide
        self.order_of_workers = order_of_workers
        self.rank, self.world_size = rank, world_size
        self.start, self.stop = start, stop

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        """Yield (iteration, indices)."""
        indices = index_stream(self.size, self.seed, self.rank, self.world_size)
        if self.wide is not None:  # without grouping a worker returns whole batches, in the order of the stream
            indices = interleave_workers(indices, self.batch_size, self.order_of_workers)
        stream = batch_stream(indices, self.batch_size, self.wide)
        return itertools.islice(enumerate(stream), self.start, self.stop)
