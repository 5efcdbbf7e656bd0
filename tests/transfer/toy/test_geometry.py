"""Polygons, their boxes and areas, and what clipping leaves of them."""

from __future__ import annotations

import numpy as np
import pytest

from transfer.toy.drawing import Box, Polygon, area_of, box_of, clip_half_plane, clip_to_image, place

SQUARE = np.array([(0, 0), (4, 0), (4, 4), (0, 4)], dtype=np.float64)


def moved(x: float, y: float) -> Polygon:
    return SQUARE + np.array([x, y])


def test_area_and_box() -> None:
    assert area_of(SQUARE) == 16
    assert area_of(SQUARE[::-1]) == 16
    assert box_of(moved(1, 2)) == Box(1, 2, 5, 6)
    assert area_of(box_of(SQUARE).corners()) == 16


@pytest.mark.parametrize(
    ("normal", "limit", "area"),
    [((1, 0), 1, 4), ((-1, 0), -1, 12), ((0, 1), 4, 16), ((0, 1), 9, 16), ((1, 1), 4, 8), ((0, -1), -5, 0)],
)
def test_a_half_plane_keeps_its_share(normal: tuple[float, float], limit: float, area: float) -> None:
    left = clip_half_plane(SQUARE, normal, limit)
    assert (area_of(left) if len(left) else 0) == pytest.approx(area)
    assert (left @ np.array(normal) <= limit + 1e-9).all()


def test_the_two_halves_of_a_cut_make_the_whole() -> None:
    star = np.array(
        [(0, -9), (2, -3), (9, -3), (3, 1), (5, 8), (0, 4), (-5, 8), (-3, 1), (-9, -3), (-2, -3)], dtype=np.float64
    )
    angle = 0.3
    normal = (float(np.cos(angle)), float(np.sin(angle)))
    one = clip_half_plane(star, normal, 1.3)
    other = clip_half_plane(star, (-normal[0], -normal[1]), -1.3)
    assert area_of(one) + area_of(other) == pytest.approx(area_of(star))


def test_clipping_to_an_image() -> None:
    inside = clip_to_image(moved(-2, 1), width=10, height=3)
    assert box_of(inside) == Box(0, 1, 2, 3)
    assert len(clip_to_image(moved(20, 0), 10, 10)) == 0


def test_placing_scales_turns_and_moves() -> None:
    unit = np.array([(1.0, 0.0), (0.0, 1.0)])
    assert np.allclose(place(unit, (2, 3), 0.0, (10, 20)), [(12, 20), (10, 23)])
    assert np.allclose(place(unit, (1, 1), np.pi / 2, (0, 0)), [(0, 1), (-1, 0)])


@pytest.mark.parametrize(("x", "margin", "near"), [(5, 0, False), (5, 2, True), (3, 0, True), (6, 2, False)])
def test_boxes_that_come_too_near(x: float, margin: float, near: bool) -> None:
    one, other = Box(0, 0, 4, 4), Box(x, 1, x + 4, 5)
    assert one.overlaps(other, margin) is near
    assert other.overlaps(one, margin) is near
