"""VOC's metric: equal to Detectron2's evaluator digit for digit, and right on cases done by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, Instances

from transfer.engine.data import catalogue
from transfer.evaluation.voc import VOCEvaluator
from transfer.evaluation.voc_metric import THRESHOLDS, Detections, Objects, average_precisions, rounded
from transfer.tasks.splits import Split
from transfer.tasks.task import Dataset, read

CLASSES = ("cat", "dog", "emu")


def make_set(folder: Path, rng: np.random.Generator, images: int, year: int, objects: int = 4) -> Dataset:
    """A VOC split with random objects, some of them difficult; the last class may have none."""
    (folder / "Annotations").mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    (folder / "ImageSets/Main").mkdir(parents=True)
    names = [f"{number:06d}" for number in rng.permutation(images)]
    (folder / "ImageSets/Main/test.txt").write_text("\n".join(names) + "\n")
    for name in names:
        (folder / f"JPEGImages/{name}.jpg").touch()
        things = "".join(make_object(rng) for _ in range(rng.integers(objects + 1)))
        xml = f"<annotation><size><width>100</width><height>80</height></size>{things}</annotation>"
        (folder / f"Annotations/{name}.xml").write_text(xml)
    return read(Split(f"random_{year}", "voc", folder, "test", year=year), CLASSES)


def make_object(rng: np.random.Generator) -> str:
    x0, y0 = rng.integers(1, 70), rng.integers(1, 50)
    box = dict(
        zip(("xmin", "ymin", "xmax", "ymax"), (x0, y0, x0 + rng.integers(5, 30), y0 + rng.integers(5, 30)), strict=True)
    )
    sides = "".join(f"<{key}>{value}</{key}>" for key, value in box.items())
    flags = f"<pose>Left</pose><truncated>0</truncated><difficult>{int(rng.random() < 0.3)}</difficult>"
    return f"<object><name>{rng.choice(CLASSES)}</name>{flags}<bndbox>{sides}</bndbox></object>"


def detections(
    rng: np.random.Generator, dataset: Dataset, most: int, decimals: int
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Detections near the objects and elsewhere; few decimals make many ties."""
    found = []
    for record in dataset.records:
        near = [
            (np.array(thing.box) + rng.normal(0, rng.choice([0.3, 2, 6]), 4), thing.label)
            for thing in record.things
            for _ in range(2)
        ]
        elsewhere = [
            (np.sort(rng.uniform(0, 90, 4))[[0, 1, 2, 3]], rng.integers(3)) for _ in range(rng.integers(most + 1))
        ]
        boxes = near + elsewhere
        instances = Instances((80, 100))
        instances.pred_boxes = Boxes(torch.tensor(np.array([b for b, _ in boxes]).reshape(-1, 4), dtype=torch.float32))
        instances.scores = torch.tensor(rng.random(len(boxes)).round(decimals), dtype=torch.float32)
        instances.pred_classes = torch.tensor([int(label) for _, label in boxes], dtype=torch.int64)
        found.append(({"image_id": record.image_id}, {"instances": instances}))
    return found


def measure(evaluator: Any, found: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, float]:
    evaluator.reset()
    for image, output in found:
        evaluator.process([image], [output])
    return dict(evaluator.evaluate()["bbox"])


@pytest.mark.parametrize("seed", range(30))
def test_the_digits_equal_detectron2_s(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    dataset = make_set(tmp_path, rng, images=int(rng.integers(1, 12)), year=(2007, 2012)[seed % 2])
    found = detections(rng, dataset, most=int(rng.integers(8)), decimals=int(rng.choice([1, 2, 6])))
    ours, theirs = (
        measure(VOCEvaluator(dataset), found),
        measure(PascalVOCDetectionEvaluator(catalogue(dataset)), found),
    )
    for key in ("AP", "AP50", "AP75"):
        np.testing.assert_allclose(ours[key], theirs[key], rtol=0, atol=1e-9, equal_nan=True)


def test_the_digits_equal_detectron2_s_on_the_real_annotations(real_data: Path) -> None:
    rng = np.random.default_rng(7)
    from transfer.tasks.classes import VOC

    dataset = read(Split("voc_2007_test", "voc", real_data / "detection/VOC2007", "test"), VOC)
    found = detections(rng, dataset, most=20, decimals=3)
    ours, theirs = (
        measure(VOCEvaluator(dataset), found),
        measure(PascalVOCDetectionEvaluator(catalogue(dataset)), found),
    )
    assert {key: ours[key] for key in theirs} == pytest.approx(theirs, abs=1e-9)
    assert 0 < ours["AP50"] < 100


def test_each_class_has_its_own_average_over_the_ten_thresholds(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    dataset = make_set(tmp_path, rng, images=20, year=2007)
    values = measure(VOCEvaluator(dataset), detections(rng, dataset, most=3, decimals=2))
    assert values["AP"] == pytest.approx(np.mean([values[f"AP-{name}"] for name in CLASSES]))


def one_class(boxes: list[list[float]], difficult: list[bool]) -> Objects:
    return Objects(
        np.zeros(len(boxes), dtype=np.int64),
        np.array(boxes, dtype=float).reshape(-1, 4),
        np.array(difficult, dtype=bool),
    )


def found_in_image_0(boxes: list[list[float]], scores: list[float]) -> Detections:
    return Detections(
        np.zeros(len(boxes), dtype=np.int64), np.array(scores), np.array(boxes, dtype=float).reshape(-1, 4)
    )


A, B = [1.0, 1, 10, 10], [21.0, 1, 30, 10]


@pytest.mark.parametrize(
    ("objects", "found", "expected"),
    [
        # Both found, nothing false.
        (one_class([A, B], [False, False]), found_in_image_0([A, B], [0.9, 0.8]), 1.0),
        # Half found: precision 1 at recalls 0, .1, … .5: six of eleven points.
        (one_class([A, B], [False, False]), found_in_image_0([A], [0.9]), 6 / 11),
        # The second detection of one object is false: precision 1 up to recall .5, 2/3 beyond.
        (one_class([A, B], [False, False]), found_in_image_0([A, A, B], [0.9, 0.8, 0.7]), (6 + 5 * 2 / 3) / 11),
        # A difficult object asks for nothing, and what finds it counts neither way.
        (one_class([A, B], [False, True]), found_in_image_0([B, B, A], [0.9, 0.8, 0.7]), 1.0),
        # Nothing found, nothing to find.
        (one_class([A], [False]), found_in_image_0([], []), 0.0),
        (one_class([], []), found_in_image_0([A], [0.9]), 0.0),
    ],
)
def test_cases_by_hand(objects: Objects, found: Detections, expected: float) -> None:
    np.testing.assert_allclose(average_precisions(objects, found, points_11=True), [expected] * len(THRESHOLDS))


def test_an_overlap_at_the_threshold_is_not_above_it() -> None:
    # 10 × 10 pixels against 10 × 20 that hold them: an IoU of exactly one half.
    objects, found = one_class([[1, 1, 10, 20]], [False]), found_in_image_0([[1, 1, 10, 10]], [0.9])
    assert average_precisions(objects, found, True, [0.5, 0.49]).tolist() == pytest.approx([0.0, 1.0])


def test_rounding_is_that_of_printing_and_reading_back() -> None:
    values = np.random.default_rng(0).uniform(-3, 900, 20000).astype(np.float32)
    values = np.concatenate([values, np.arange(-40, 4000, dtype=np.float32) / 80])  # exact halves among them
    for decimals in (1, 3):
        assert rounded(values, decimals).tolist() == [float(f"{value:.{decimals}f}") for value in values]
