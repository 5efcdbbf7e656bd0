"""The weights of Pillow's Gaussian blur, which is three box blurs of a fractional radius, one after the other."""

from __future__ import annotations

import math

import numpy as np

PASSES = 3


def blur_kernel(radius: float) -> np.ndarray:
    """The one-dimensional kernel, float32 of odd length, that Pillow's `GaussianBlur(radius)` amounts to.

    A box of radius r = l + a weighs 2l + 1 pixels by 1 and one more on each side by a; l and a are chosen so that three
    boxes have the Gaussian's variance (Gwosdek et al., "Theoretical Foundations of Gaussian Convolution by Extended Box
    Filtering", 2011, which Pillow follows).

    Args:
        radius: the Gaussian's standard deviation in pixels, above 0.
    """
    variance = radius**2 / PASSES
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    edge = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    box = np.array([edge, *[1.0] * (2 * whole + 1), edge]) / (2 * (whole + edge) + 1)
    kernel = box
    for _ in range(PASSES - 1):
        kernel = np.convolve(kernel, box)
    return kernel.astype(np.float32)
