"""Random numbers as a function of what they are for: no process, worker or position in a stream has a part in them."""

from __future__ import annotations

import numpy as np

VIEWS = (0, 1)
"""Purposes 0 and 1: the augmentation of a sample's first and second view."""

ORDER = 2
"""Purpose 2: the order of the images in an epoch."""

SECOND_PAIR = (3, 4)
"""Purposes 3 and 4: the augmentation of a sample's third and fourth view, for methods that take so many."""


def stream(seed: int, epoch: int, index: int, purpose: int) -> np.random.Generator:
    """The random numbers of one sample (or, with `ORDER`, of one epoch).

    Philox is counter-based: the seed is its key and (index, epoch, purpose) the upper words of its counter, so two
    different arguments never share a number (the lowest word leaves room for 2**66 draws).

    Args:
        seed: the run's seed, ≥ 0.
        epoch: counted from 0.
        index: the sample's place in the folder index.
        purpose: one of `VIEWS` or `SECOND_PAIR`, or `ORDER`.
    """
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, index, epoch, purpose]))
