"""Randomness as a function of where in the run it is needed, so that neither workers nor a restart change a run.

Every draw belongs to (seed, stream, rank, iteration[, slot]). The image list alone follows Detectron2: its
sampler's seed is
the number that Detectron2 draws from numpy's generator after `SEED` was set.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

INIT, STEP, AUGMENT, PRECISE_BN = range(4)
"""Streams: initial weights, RoI and anchor sampling, augmentation, precise BN. Their numbers must never change."""


def entropy(seed: int, stream: int, *where: int) -> np.random.SeedSequence:
    """The seed sequence of one place in the run."""
    return np.random.SeedSequence([seed, stream, *where])


def seed_torch(seed: int, stream: int, *where: int) -> None:
    """Seed torch's default generators (CPU and GPU) for one place in the run."""
    torch.manual_seed(int(entropy(seed, stream, *where).generate_state(1, np.uint64)[0] >> np.uint64(1)))


@contextlib.contextmanager
def numpy_seeded(seed: int, stream: int, *where: int) -> Iterator[None]:
    """numpy's global generator, which Detectron2's augmentations use, seeded for one place and put back after it."""
    state = np.random.get_state()
    np.random.seed(entropy(seed, stream, *where).generate_state(4))
    try:
        yield
    finally:
        np.random.set_state(state)


def sampler_seeds(seed: int, count: int) -> list[int]:
    """The seeds Detectron2's samplers draw one after the other once `SEED: seed` is set (`comm.shared_random_seed`).

    The first is the training loader's, the second that of the loader precise BN reads.
    """
    generator = np.random.RandomState(seed)
    return [int(generator.randint(2**31)) for _ in range(count)]
