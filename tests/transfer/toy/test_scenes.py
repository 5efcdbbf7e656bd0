"""Scenes: what is annotated is what can be seen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from transfer.toy.drawing import SHAPES, Polygon, area_of, coverage, generator, names_of
from transfer.toy.scenes import Scene, SceneObject, compose, image_size

CLASSES = tuple(shape.name for shape in SHAPES)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rngs = [generator(0, "test", index) for index in range(60)]
    return [compose(rng, names_of(rng, index, CLASSES), difficult=index % 5 == 0) for index, rng in enumerate(rngs)]


def each(scenes: list[Scene]) -> Iterator[tuple[Scene, SceneObject, NDArray[np.bool_], NDArray[np.bool_]]]:
    """Every item with its scene, the pixels well inside it and those of a ring around it."""
    for scene in scenes:
        for item in scene.objects:
            mask = Image.fromarray((coverage(item.polygon, *scene.size) > 0.5).astype(np.uint8) * 255)
            near, far = (np.asarray(mask.filter(ImageFilter.MaxFilter(size))) > 0 for size in (5, 9))
            yield scene, item, np.asarray(mask.filter(ImageFilter.MinFilter(5))) > 0, far & ~near


def saturation(scene: Scene) -> NDArray[np.float64]:
    return np.asarray(scene.image.convert("HSV"), dtype=np.float64)[..., 1] / 255


def test_a_polygon_is_exactly_the_visible_part_of_its_object(scenes: list[Scene]) -> None:
    """Things are coloured, veils and backgrounds pale: a hidden end in the polygon would show, a lost one too."""
    seen = set()
    for scene, item, inside, ring in each(scenes):
        if item.difficult:
            continue
        seen.add((item.truncated, item.occluded))
        assert (saturation(scene)[inside] > 0.15).mean() > 0.97
        assert (saturation(scene)[ring] > 0.45).mean() < 0.05
    assert seen == {(False, False), (True, False), (False, True)}


def test_an_object_has_the_hue_of_its_class(scenes: list[Scene]) -> None:
    hues = {shape.name: shape.hue for shape in SHAPES}
    for scene, item, inside, _ in each(scenes):
        if not item.difficult:
            hue = np.asarray(scene.image.convert("HSV"), dtype=np.float64)[..., 0] / 255
            away = (hue[inside] - hues[item.name] + 0.5) % 1 - 0.5
            assert abs(np.median(away)) < 0.09


def test_difficult_objects_are_small_and_optional(scenes: list[Scene]) -> None:
    for index, scene in enumerate(scenes):
        assert sum(item.difficult for item in scene.objects) <= (index % 5 == 0)
    sides = [(max(t.box.x1 - t.box.x0, t.box.y1 - t.box.y0), t.difficult) for s in scenes for t in s.objects]
    assert sum(difficult for _, difficult in sides) >= 8
    assert (
        max(side for side, difficult in sides if difficult)
        < np.median([side for side, hard in sides if not hard]) / 1.5
    )


def test_the_first_object_is_always_drawn(scenes: list[Scene]) -> None:
    assert [scene.objects[0].name for scene in scenes] == [CLASSES[index % 3] for index in range(60)]


def test_a_scene_without_objects_has_no_annotations() -> None:
    scene = compose(generator(0, "empty", 0), [])
    assert scene.objects == [] and scene.crowd is None


def test_a_herd_is_where_its_mask_says() -> None:
    scene = compose(generator(0, "crowd", 0), ["cat", "bus"], crowd=True)
    assert scene.crowd is not None and scene.crowd.name == "sheep"
    width, height = scene.size
    assert scene.crowd.mask.shape == (height, width)
    assert np.median(saturation(scene)[scene.crowd.mask]) > 0.4
    for item in scene.objects:
        assert not (scene.crowd.mask & (coverage(item.polygon, width, height) > 0.5)).any()


def test_a_scene_is_a_function_of_its_generator() -> None:
    first, second = (compose(generator(1, "x", 2), ["cat", "bus"], True, True) for _ in range(2))
    assert first.image.tobytes() == second.image.tobytes()
    assert [item.box for item in first.objects] == [item.box for item in second.objects]
    assert compose(generator(1, "x", 3), ["cat", "bus"]).image.tobytes() != first.image.tobytes()


def test_sizes_are_of_several_aspects_and_one_range() -> None:
    sizes = [image_size(generator(0, "size", index)) for index in range(100)]
    assert all(128 <= min(size) <= 160 for size in sizes)
    ratios = [width / height for width, height in sizes]
    assert min(ratios) < 0.7 and max(ratios) > 1.7


def test_coverage_is_a_polygons_share_of_each_pixel() -> None:
    """Right in area to a fifth of a pixel along the edge, and not shifted: the centre of mass is the polygon's."""
    rng = np.random.default_rng(0)
    shifts = []
    for _ in range(50):
        angle = np.sort(rng.uniform(0, 2 * np.pi, 12))
        centre, radius = rng.uniform(30, 34, 2), rng.uniform(10, 20)
        polygon = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius + centre
        share = coverage(polygon, 64, 64)
        edge = np.linalg.norm(polygon - np.roll(polygon, 1, axis=0), axis=1).sum()
        assert 0 <= share.sum() - area_of(polygon) < 0.2 * edge
        ys, xs = np.mgrid[:64, :64] + 0.5
        shifts.append(np.array([(xs * share).sum(), (ys * share).sum()]) / share.sum() - centre_of_mass(polygon))
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.03


def centre_of_mass(polygon: Polygon) -> NDArray[np.float64]:
    following = np.roll(polygon, -1, axis=0)
    cross = polygon[:, 0] * following[:, 1] - following[:, 0] * polygon[:, 1]
    centre: NDArray[np.float64] = ((polygon + following) * cross[:, None]).sum(axis=0) / (3 * cross.sum())
    return centre


def test_names_go_round_the_classes() -> None:
    names = [names_of(generator(0, "n", index), index, CLASSES) for index in range(50)]
    assert [some[0] for some in names[:4]] == ["bus", "cat", "sheep", "bus"]
    assert {len(some) for some in names} == {1, 2, 3}
    assert {name for some in names for name in some[1:]} == set(CLASSES)
