"""Randomness as a function of the position in the run, so that neither workers nor a restart change a run.

Every random number belongs to (seed, stream, rank, iteration[, slot]). Only the image list follows Detectron2: its
sampler's seed is the number that Detectron2 draws from numpy's generator after `SEED` was set.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

INIT, STEP, AUGMENT, PRECISE_BN = range(4)
"""Streams: initial weights, RoI and anchor sampling, augmentation, precise BN. These numbers must never change."""


def seed_sequence(seed: int, stream: int, *position: int) -> np.random.SeedSequence:
    """The seed sequence of one position in the run."""
    return np.random.SeedSequence([seed, stream, *position])


def seed_torch(seed: int, stream: int, *position: int) -> None:
    """Seed torch's default generators (CPU and GPU) for one position in the run."""
    torch.manual_seed(int(seed_sequence(seed, stream, *position).generate_state(1, np.uint64)[0] >> np.uint64(1)))


@contextlib.contextmanager
def numpy_seeded(seed: int, stream: int, *position: int) -> Iterator[None]:
    """Seed numpy's global generator, which Detectron2's augmentations use, for one position; restore it afterwards."""
    state = np.random.get_state()
    np.random.seed(seed_sequence(seed, stream, *position).generate_state(4))
    try:
        yield
    finally:
        np.random.set_state(state)


def sampler_seeds(seed: int, count: int) -> list[int]:
    """The seeds that Detectron2's samplers draw one after the other after `SEED: seed` (`comm.shared_random_seed`).

    The first is the training loader's, the second that of precise BN's loader.
    """
    generator = np.random.RandomState(seed)
    return [int(generator.randint(2**31)) for _ in range(count)]
