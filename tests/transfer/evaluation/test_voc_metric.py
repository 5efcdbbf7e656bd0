"""VOC's metric: equal to Detectron2's evaluator digit for digit, and right on cases done by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.evaluation import PascalVOCDetectionEvaluator, pascal_voc_evaluation
from detectron2.structures import Boxes, Instances

from ssl_transfer.environment import ROOT
from transfer.engine.detection_data import register_metadata
from transfer.evaluation import voc_evaluator as voc
from transfer.evaluation import voc_metric
from transfer.evaluation.voc_evaluator import VOCEvaluator
from transfer.evaluation.voc_metric import THRESHOLDS, ClassDetections, Objects, average_precisions, rounded
from transfer.tasks.classes import VOC
from transfer.tasks.datasets import Split
from transfer.tasks.task import Dataset, read_split

CLASSES = ("cat", "dog", "emu")
Found = list[tuple[dict[str, Any], dict[str, Any]]]


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
    return read_split(Split(f"random_{year}", "voc", folder, "test", year=year), CLASSES)


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
            for thing in record.annotations
            for _ in range(2)
        ]
        elsewhere = [
            (np.sort(rng.uniform(0, 90, 4))[[0, 1, 2, 3]], rng.integers(len(dataset.classes)))
            for _ in range(rng.integers(most + 1))
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
    check_equal(dataset, found)


def check_equal(dataset: Dataset, found: Found) -> dict[str, float]:
    """Ours, after it was held against Detectron2's, each class's AP included."""
    pascal_voc_evaluation.parse_rec.cache_clear()  # it remembers a path, and pytest may use one again
    peer = PascalVOCDetectionEvaluator(register_metadata(dataset))
    ours, theirs = measure(VOCEvaluator(dataset), found), measure(peer, found)
    for key in ("AP", "AP50", "AP75"):
        np.testing.assert_allclose(ours[key], theirs[key], rtol=0, atol=1e-9, equal_nan=True)
    return ours


def some_of(dataset: Dataset, count: int, folder: Path, rng: np.random.Generator) -> Dataset:
    """A few images of a split as a split of its own beside links to its annotations; some of its classes are empty."""
    records = [dataset.records[index] for index in rng.permutation(len(dataset.records))[:count]]
    lists = folder / "ImageSets/Main"
    if not lists.is_dir():
        lists.mkdir(parents=True)
        (folder / "Annotations").symlink_to(dataset.split.folder / "Annotations")
    (lists / "part.txt").write_text("".join(f"{record.image_id}\n" for record in records))
    split = replace(dataset.split, folder=folder, image_set="part", year=int(rng.choice([2007, 2012])))
    return replace(dataset, split=split, records=records)


def real_or_made(folder: Path, rng: np.random.Generator) -> Dataset:
    real = ROOT.parent / "shared/data/detection/VOC2007"
    if real.is_dir():
        return read_split(Split("voc_2007_test", "voc", real.resolve(), "test"), VOC)
    return make_set(folder / "made", rng, images=120, year=2007)


@pytest.mark.slow
def test_the_digits_equal_detectron2_s_in_a_thousand_small_cases(tmp_path: Path) -> None:
    """Over the real annotations: equal scores, empty classes and images, classes of difficult objects alone."""
    rng = np.random.default_rng(0)
    dataset = real_or_made(tmp_path, rng)
    values = []
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        part = some_of(dataset, int(rng.integers(1, 9)), tmp_path / "part", rng)
        found = detections(rng, part, most=int(rng.integers(6)), decimals=int(rng.choice([1, 2, 3, 6])))
        kept = [one for one in found if rng.random() < 0.9]
        values.append(check_equal(part, kept)["AP50"])
    assert np.isnan(values).any() and np.isfinite(values).any()


@pytest.mark.slow
def test_the_digits_equal_detectron2_s_at_full_size(tmp_path: Path) -> None:
    """4,952 images with 60 boxes each, as many as VOC2007's test split at a low threshold."""
    from benchmarks.evaluators import random_detections, random_set

    dataset = random_set(tmp_path / "VOC2007", 4952)
    values = check_equal(dataset, random_detections(dataset, 60))
    assert 1 < values["AP"] < 99


def difficult_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    original = voc.objects_by_class

    def mutant(dataset: Dataset) -> list[Objects]:
        return [replace(objects, difficult=np.zeros_like(objects.difficult)) for objects in original(dataset)]

    monkeypatch.setattr(voc, "objects_by_class", mutant)


def at_is_above(monkeypatch: pytest.MonkeyPatch) -> None:
    below = [float(np.nextafter(threshold, 0)) for threshold in THRESHOLDS]
    monkeypatch.setattr(
        voc, "average_precisions", lambda objects, found, points: average_precisions(objects, found, points, below)
    )


def nothing_is_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voc, "rounded", lambda values, decimals: values.astype(np.float64))


def last_pixel_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    original = voc_metric._iou
    one_less = np.array([0, 0, 1, 1])
    monkeypatch.setattr(voc_metric, "_iou", lambda a, b: original(a - one_less, b - one_less))


def corner_is_not_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """xmin and ymin as the detector counts them, from 0."""
    original = voc.rounded
    one = np.array([1, 1, 0, 0])
    monkeypatch.setattr(voc, "rounded", lambda v, decimals: original(v - one if v.ndim == 2 else v, decimals))


MUTATIONS = (difficult_counts, at_is_above, nothing_is_rounded, last_pixel_is_forgotten, corner_is_not_moved)


@pytest.mark.parametrize("mutation", [None, *MUTATIONS])
def test_a_metric_with_a_mistake_has_other_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutation: Callable[[pytest.MonkeyPatch], None] | None
) -> None:
    rng = np.random.default_rng(4)
    dataset = make_set(tmp_path, rng, images=30, year=2007)
    found = detections(rng, dataset, most=3, decimals=6)
    for record, (_, output) in zip(dataset.records, found, strict=True):
        halves = [_upper_half(thing.box) for thing in record.annotations]
        boxes, instances = torch.tensor(halves, dtype=torch.float32).reshape(-1, 4), output["instances"]
        instances_with_halves = Instances((80, 100))
        instances_with_halves.pred_boxes = Boxes(torch.cat([instances.pred_boxes.tensor, boxes]))
        instances_with_halves.scores = torch.cat([instances.scores, torch.full((len(boxes),), 0.995)])
        labels = torch.tensor([thing.label for thing in record.annotations], dtype=torch.int64)
        instances_with_halves.pred_classes = torch.cat([instances.pred_classes, labels])
        output["instances"] = instances_with_halves
    theirs = measure(PascalVOCDetectionEvaluator(register_metadata(dataset)), found)
    if mutation is not None:
        mutation(monkeypatch)
    ours = measure(VOCEvaluator(dataset), found)
    gap = max(abs(ours[key] - theirs[key]) for key in theirs)
    assert gap <= 1e-9 if mutation is None else gap > 1e-4


def _upper_half(box: tuple[float, float, float, float]) -> list[float]:
    """An overlap of exactly one half where the height is even, as the detector would give it: counted from 0."""
    x0, y0, x1, y1 = box
    return [x0 - 1, y0 - 1, x1, y0 - 1 + (y1 - y0 + 1) / 2]


def test_the_digits_equal_detectron2_s_on_the_real_annotations(real_data: Path) -> None:
    rng = np.random.default_rng(7)
    dataset = read_split(Split("voc_2007_test", "voc", real_data / "detection/VOC2007", "test"), VOC)
    found = detections(rng, dataset, most=20, decimals=3)
    ours, theirs = (
        measure(VOCEvaluator(dataset), found),
        measure(PascalVOCDetectionEvaluator(register_metadata(dataset)), found),
    )
    assert {key: ours[key] for key in theirs} == pytest.approx(theirs, abs=1e-9)
    assert 0 < ours["AP50"] < 100


@pytest.mark.parametrize("year", [2007, 2012])
def test_a_trial_that_predicts_nothing_gets_zeros(tmp_path: Path, year: int) -> None:
    dataset = make_set(tmp_path, np.random.default_rng(3), images=20, year=year)
    assert {thing.label for record in dataset.records for thing in record.annotations} == {0, 1, 2}
    found = [
        (image, {"instances": output["instances"][:0]})
        for image, output in detections(np.random.default_rng(0), dataset, 2, 2)
    ]
    values = check_equal(dataset, found)
    assert set(values.values()) == {0.0}
    assert check_equal(dataset, [])["AP"] == 0.0


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


def found_in_image_0(boxes: list[list[float]], scores: list[float]) -> ClassDetections:
    return ClassDetections(
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
def test_cases_by_hand(objects: Objects, found: ClassDetections, expected: float) -> None:
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
