"""Polygons in pixels: float64 (N, 2), x to the right, y down, the top left corner of the image at (0, 0)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Polygon = NDArray[np.float64]


class Box(NamedTuple):
    """An upright rectangle, in pixels."""

    x0: float
    y0: float
    x1: float
    y1: float

    def overlaps(self, other: Box, margin: float = 0.0) -> bool:
        """Whether the two come nearer to each other than `margin`."""
        apart_x = self.x0 >= other.x1 + margin or other.x0 >= self.x1 + margin
        apart_y = self.y0 >= other.y1 + margin or other.y0 >= self.y1 + margin
        return not (apart_x or apart_y)

    def corners(self) -> Polygon:
        """The rectangle as a polygon."""
        x, y = [self.x0, self.x1, self.x1, self.x0], [self.y0, self.y0, self.y1, self.y1]
        return np.array([x, y], dtype=np.float64).T


def box_of(polygon: Polygon) -> Box:
    """The smallest upright rectangle that holds the polygon."""
    (x0, y0), (x1, y1) = polygon.min(axis=0), polygon.max(axis=0)
    return Box(float(x0), float(y0), float(x1), float(y1))


def area_of(polygon: Polygon) -> float:
    """The area by the shoelace formula, in square pixels."""
    x, y = polygon.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def place(outline: Polygon, half_size: tuple[float, float], angle: float, centre: tuple[float, float]) -> Polygon:
    """An outline of unit coordinates (-1 … 1) scaled, turned by `angle` radians and moved."""
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    return (outline * half_size) @ turn + centre


def clip_half_plane(polygon: Polygon, normal: tuple[float, float], limit: float) -> Polygon:
    """The part of the polygon where normal·x ≤ limit (Sutherland and Hodgman 1974); empty where nothing is left."""
    side = polygon @ np.asarray(normal, dtype=np.float64) - limit
    kept: list[Polygon] = []
    for index, here in enumerate(side):
        point, before, previous = polygon[index], side[index - 1], polygon[index - 1]
        if (before < 0) != (here < 0) and before != here:
            kept.append(previous + (point - previous) * (before / (before - here)))
        if here <= 0:
            kept.append(point)
    return np.array(kept, dtype=np.float64).reshape(-1, 2)


def clip_to_image(polygon: Polygon, width: int, height: int) -> Polygon:
    """The part of the polygon inside the image."""
    edges = (((-1.0, 0.0), 0.0), ((1.0, 0.0), width), ((0.0, -1.0), 0.0), ((0.0, 1.0), height))
    for normal, limit in edges:
        if len(polygon):
            polygon = clip_half_plane(polygon, normal, limit)
    return polygon
