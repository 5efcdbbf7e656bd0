"""Views as rows of numbers: what travels from a loader process to the training device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pretrain.data.augment import ADJUST, View

STEPS = tuple(ADJUST)
"""A jitter step's number is its place here."""

NO_STEP = -1.0
NO_BLUR = 0.0
WIDTH = 12
GRAY, BLUR, SOLARIZE, FLIP = 8, 9, 10, 11
"""Columns after the jitter's four pairs of (step, factor)."""


def pack(views: Sequence[View]) -> np.ndarray:
    """(N, 12) float32: four pairs of jitter step and factor in their order, then gray, blur radius, solarise, flip."""
    rows = np.zeros((len(views), WIDTH), dtype=np.float32)
    rows[:, :8:2] = NO_STEP
    for row, view in zip(rows, views, strict=True):
        for place, (name, factor) in enumerate(view.jitter):
            row[2 * place : 2 * place + 2] = STEPS.index(name), factor
        row[GRAY:] = view.gray, view.blur or NO_BLUR, view.solarize, view.flip
    return rows
