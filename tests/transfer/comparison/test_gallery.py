"""Which images differ most, and what is drawn on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssl_transfer.errors import UserError
from tests.transfer.comparison.made_detections import detections, draw, split
from transfer.comparison import gallery
from transfer.comparison.gallery import choose_images, draw_detections, image_quality

CAT = 0
HERE, ELSEWHERE = (10.0, 10.0, 40.0, 40.0), (60.0, 60.0, 90.0, 90.0)


def test_quality_is_true_minus_false_positives_above_the_score_and_ties_go_by_id() -> None:
    dataset = split([(image, CAT, HERE) for image in range(4)])
    ours = detections(dataset, [(0, CAT, 0.9, HERE), (2, CAT, 0.9, HERE), (3, CAT, 0.9, HERE), (1, CAT, 0.4, HERE)])
    theirs = detections(dataset, [(0, CAT, 0.9, HERE), (2, CAT, 0.8, ELSEWHERE), (1, CAT, 0.3, ELSEWHERE)])
    assert image_quality(ours).tolist() == [1, 0, 1, 1] and image_quality(theirs).tolist() == [1, 0, -1, 0]
    assert [(one.name, one.ours, one.theirs) for one in choose_images(ours, theirs, 9)] == [("2", 1, -1), ("3", 1, 0)]
    assert [one.index for one in choose_images(ours, theirs, 1)] == [2]
    tied = detections(dataset, [])
    assert [one.name for one in choose_images(tied, ours, 2)] == ["0", "2"]


def test_true_and_false_positives_have_their_colours_and_annotations_are_dashed(tmp_path: Path) -> None:
    dataset = split([(0, CAT, HERE)], folder=tmp_path)
    draw(dataset)
    found = detections(dataset, [(0, CAT, 0.9, ELSEWHERE), (0, CAT, 0.3, (1.0, 1.0, 5.0, 5.0))])
    image = draw_detections(dataset, 0, found)
    assert image.size == (gallery.LONGEST_SIDE,) * 2
    pixels, scale = np.asarray(image), gallery.LONGEST_SIDE / 100
    right, top, bottom = (round(side * scale) for side in (90, 62, 88))
    colour = tuple(bytes.fromhex(gallery.FALSE[1:]))
    assert (pixels[top:bottom, right - 1] == colour).all()
    edge = pixels[round(20 * scale) : round(30 * scale), round(10 * scale)].sum(axis=1)
    assert {0, 3 * 255} <= set(edge.tolist()), "black and white dashes"
    assert (pixels[round(3 * scale), round(3 * scale)] == 128).all(), "nothing below the score is drawn"


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    dataset = split([(0, CAT, HERE)], folder=tmp_path)
    (tmp_path / "0.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"0\.png cannot be read"):
        draw_detections(dataset, 0, detections(dataset, []))
