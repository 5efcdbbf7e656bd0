"""Masks' strings are pycocotools', byte for byte, wherever masks and boxes lie."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as rle

from transfer.evaluation.run_lengths import encode_masks


def theirs(masks: np.ndarray) -> list[bytes]:
    return [rle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"] for mask in masks]


def made_masks(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Blobs in boxes, with empty, full and noisy masks, and boxes that miss their mask or lie outside the image."""
    masks = np.zeros((24, height, width), dtype=bool)
    boxes = np.zeros((24, 4), dtype=np.float32)
    for mask, box in zip(masks, boxes, strict=True):
        x, y = rng.integers(0, width), rng.integers(0, height)
        w, h = rng.integers(1, width - x + 1), rng.integers(1, height - y + 1)
        mask[y : y + h, x : x + w] = rng.random((h, w)) < rng.choice([0.3, 1])
        box[:] = x + rng.uniform(-1, 1), y + rng.uniform(-1, 1), w, h
    masks[0], masks[1] = False, True
    boxes[2:5] = [[-50, -50, 10, 10], [width + 9, 0, 5, 5], [3, 3, 0, 0]]
    return masks, boxes


@pytest.mark.parametrize("seed", range(60))
def test_strings_of_random_masks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks, boxes = made_masks(rng, int(rng.integers(1, 40)), int(rng.integers(1, 40)))
    assert encode_masks(masks, boxes) == theirs(masks)


@pytest.mark.parametrize(
    ("top", "bottom", "left", "right"),
    [
        (0, 12, 0, 9),  # the whole image: one run of ones, none of zeros after it
        (0, 12, 0, 4),  # full columns from the first on
        (0, 12, 5, 9),  # full columns up to the last pixel: no run of zeros after them
        (0, 12, 2, 3),  # one full column
        (0, 1, 0, 1),  # the first pixel
        (11, 12, 8, 9),  # the last pixel
        (5, 6, 4, 5),  # one pixel inside
        (11, 12, 3, 4),  # the bottom of a column …
        (0, 12, 3, 3),  # nothing
        (0, 1, 0, 9),  # the first row
        (11, 12, 0, 9),  # the last row
    ],
)
def test_strings_at_the_borders(top: int, bottom: int, left: int, right: int) -> None:
    mask = np.zeros((12, 9), dtype=bool)
    mask[top:bottom, left:right] = True
    box = np.array([[left, top, right - left, bottom - top]], dtype=np.float32)
    assert encode_masks(mask[None], box) == theirs(mask[None])


def test_a_run_that_continues_in_the_next_column_is_one_run() -> None:
    mask = np.zeros((6, 4), dtype=bool)
    mask[4:, 1], mask[:2, 2] = True, True
    (counts,) = encode_masks(mask[None], np.array([[1, 0, 2, 6]], dtype=np.float32))
    assert rle.decode({"size": [6, 4], "counts": counts}).astype(bool).tolist() == mask.tolist()
    assert [counts] == theirs(mask[None]) == [rle.frPyObjects({"size": [6, 4], "counts": [10, 4, 10]}, 6, 4)["counts"]]


def test_pixels_outside_the_box_are_encoded() -> None:
    masks = np.zeros((2, 30, 40), dtype=bool)
    masks[0, 3:9, 4:12], masks[1, 3:9, 4:12], masks[1, 20, 30] = True, True, True
    boxes = np.array([[4, 3, 8, 6]] * 2, dtype=np.float32)
    assert encode_masks(masks, boxes) == theirs(masks)


def test_no_masks_and_empty_images() -> None:
    boxes = np.zeros((3, 4), dtype=np.float32)
    assert encode_masks(np.zeros((0, 5, 5), dtype=bool), boxes[:0]) == []
    for shape in ((3, 0, 4), (3, 4, 0)):
        assert encode_masks(np.zeros(shape, dtype=bool), boxes) == theirs(np.zeros(shape, dtype=bool))
