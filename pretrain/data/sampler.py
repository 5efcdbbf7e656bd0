"""Which images form which step, on which process: a function of (seed, iteration, rank)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from pretrain.data.randomness import ORDER, stream


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """The batches of a run from one iteration to another, as lists of (epoch, index).

    Each epoch is a permutation of all images; step s takes its s-th piece of `batch_size`, and process r of w takes
    every w-th image of that piece from the r-th on, as torch's DistributedSampler strides. What is left at an epoch's
    end is dropped. So a step's images do not depend on the number of processes, and starting at iteration i needs
    nothing but i. (DistributedSampler pads the epoch to a multiple of w first, which can make room for one more step;
    that step would depend on w.)

    Args:
        count: how many images there are.
        batch_size: images a step over all processes; a multiple of `world_size`.
        seed: the run's seed.
        rank, world_size: this process among all.
        start, stop: first iteration, and the one after the last.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int, start: int, stop: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.start, self.stop = start, stop
        self.rank, self.world_size = rank, world_size
        self.steps_per_epoch = count // batch_size

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, order_of = np.empty(0, dtype=np.int64), -1
        for iteration in range(self.start, self.stop):
            epoch, step = divmod(iteration, self.steps_per_epoch)
            if epoch != order_of:
                order, order_of = self._permutation(epoch), epoch
            piece = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield [(epoch, int(index)) for index in piece[self.rank :: self.world_size]]

    def _permutation(self, epoch: int) -> np.ndarray:
        return stream(self.seed, epoch, 0, ORDER).permutation(self.count)
