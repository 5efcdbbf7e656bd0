"""Batches and random numbers as functions of (seed, epoch, index): they do not depend on process, worker or resume."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

VIEWS = (0, 1)
"""Purposes 0 and 1: augmentation of a sample's first and second view."""

ORDER = 2
"""Purpose 2: order of the images in an epoch."""

SECOND_PAIR = (3, 4)
"""Purposes 3 and 4: augmentation of a sample's third and fourth view."""


def philox_generator(seed: int, epoch: int, index: int, purpose: int) -> np.random.Generator:
    """Random number generator of one sample (or, for `ORDER`, of one epoch).

    Philox is counter-based: the seed is its key, and (index, epoch, purpose) are the upper words of its counter. So
    generators with different arguments never share a number (the lowest word leaves room for 2**66 draws).

    Args:
        seed: the run's seed, ≥ 0.
        epoch: counted from 0.
        index: the sample's position in the image index.
        purpose: one of `VIEWS` or `SECOND_PAIR`, or `ORDER`.
    """
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, index, epoch, purpose]))


class ResumableBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of a run from one iteration to another, as lists of (epoch, index).

    Each epoch is a permutation of all images. Step s takes its s-th chunk of `batch_size`; process r of w takes every
    w-th image of the chunk from the r-th on, the stride of torch's DistributedSampler. So a step's images do not depend
    on the number of processes, and starting at iteration i needs only i.
    (DistributedSampler pads the epoch to a multiple of w first, which can add a step that depends on w.)

    Args:
        count: number of images.
        batch_size: images per step over all processes.
        seed: the run's seed.
        start, stop: first iteration, and the one after the last.
        rank, world_size: this process among all.
        drop_last: drop an epoch's incomplete last batch; otherwise it is a step, in which some processes may have no
            image.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        *,
        start: int,
        stop: int,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
    ) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.start, self.stop = start, stop
        self.rank, self.world_size = rank, world_size
        self.steps_per_epoch = count // batch_size if drop_last else -(-count // batch_size)

    def __len__(self) -> int:
        return self.stop - self.start

    def step_size(self, iteration: int) -> int:
        """The number of images of a step over all processes."""
        done = iteration % self.steps_per_epoch * self.batch_size
        return min(self.batch_size, self.count - done)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, order_epoch = np.empty(0, dtype=np.int64), -1
        for iteration in range(self.start, self.stop):
            epoch, step = divmod(iteration, self.steps_per_epoch)
            if epoch != order_epoch:
                order, order_epoch = self._permutation(epoch), epoch
            chunk = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield [(epoch, int(index)) for index in chunk[self.rank :: self.world_size]]

    def _permutation(self, epoch: int) -> np.ndarray:
        return philox_generator(self.seed, epoch, 0, ORDER).permutation(self.count)
