"""The small network, gradients and rates behind the golden values of LARS: the same for the originals and for ours."""

from __future__ import annotations

import numpy as np

LR, MOMENTUM, DECAY, TRUST, STEPS = 4.0, 0.9, 0.05, 0.001, 6

WARMUP, BATCH, BASE_LR, EPOCHS, IMAGES = 2, 4096, 0.3, 10, 4096 * 7
"""For the schedule: epochs of warm-up, images a step, and the run's length."""

SHAPES = {
    "conv.weight": (4, 3, 3, 3),
    "bn.weight": (4,),
    "bn.bias": (4,),
    "fc.weight": (5, 16),
    "fc.bias": (5,),
}
JAX_NAMES = {
    "conv.weight": ("conv", "w"),
    "bn.weight": ("batchnorm", "scale"),
    "bn.bias": ("batchnorm", "offset"),
    "fc.weight": ("linear", "w"),
    "fc.bias": ("linear", "b"),
}
TF_NAMES = {
    "conv.weight": "conv2d/kernel",
    "bn.weight": "batch_normalization/gamma",
    "bn.bias": "batch_normalization/beta",
    "fc.weight": "dense/kernel",
    "fc.bias": "dense/bias",
}


def weights() -> dict[str, np.ndarray]:
    """Float64; the last bias is all zero."""
    rng = np.random.RandomState(0)
    drawn = {name: 0.3 * rng.normal(size=shape) for name, shape in SHAPES.items()}
    return {**drawn, "fc.bias": np.zeros(SHAPES["fc.bias"])}


def gradients(step: int) -> dict[str, np.ndarray]:
    """Of a size that the weight decay is felt beside."""
    rng = np.random.RandomState(100 + step)
    return {name: 0.02 * rng.normal(size=shape) for name, shape in SHAPES.items()}


def falling(step: int) -> float:
    """The rate of a step, where it changes."""
    return LR * (1 - step / STEPS)
