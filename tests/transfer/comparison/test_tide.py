"""TIDE's kinds of error on cases whose answer is worked out by hand, each kind once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.transfer.comparison.made_detections import Found, Object, detections, split
from transfer.comparison.tide import KINDS, counted_objects, find_errors
from transfer.resampling.weighted_ap import average_precision
from transfer.tasks.datasets import Annotation, DatasetDict, Split
from transfer.tasks.task import Dataset

CAT, DOG = 0, 1
HERE, ELSEWHERE = (0.0, 0.0, 10.0, 10.0), (50.0, 50.0, 60.0, 60.0)
BESIDE = (0.0, 4.0, 10.0, 14.0)
"""IoU 60 / 140 with HERE: neither foreground nor background."""
HALF_FIRST = 100 * (51 + 50 * 2 / 3) / 101
"""AP50 of true, false, true: COCO's precision is 1 at 51 recalls and 2/3 at 50."""


def errors(
    objects: list[Object], found: list[Found], layout: str = "coco"
) -> tuple[float, dict[str, float], dict[str, float]]:
    """AP50; the gains; the numbers of errors, without zeros."""
    dataset = split(objects, layout)
    made = detections(dataset, found)
    answer = find_errors(made, counted_objects(dataset))
    ap50 = average_precision(made.matches["bbox"], 2, made.metric)["AP50"]
    gains = {kind: gain for kind, (gain, _) in answer.items()}
    return ap50, gains, {kind: count for kind, (_, count) in answer.items() if count}


CASES: dict[str, tuple[list[Object], list[Found], float, dict[str, float]]] = {
    "classification": (
        [(0, CAT, HERE), (1, DOG, HERE)],
        [(0, DOG, 0.9, HERE), (1, DOG, 0.8, HERE)],
        25.0,  # cat 0, dog 50
        {"classification": 75.0},
    ),
    "localisation": ([(0, CAT, HERE)], [(0, CAT, 0.9, BESIDE)], 0.0, {"localisation": 100.0}),
    "both": (
        [(0, CAT, HERE), (1, DOG, HERE)],
        [(0, DOG, 0.9, BESIDE), (1, DOG, 0.8, HERE)],
        25.0,
        {"both": 25.0},  # the cat is missed, but no cat is found: the class keeps its 0
    ),
    "duplicate": (
        [(0, CAT, HERE), (1, CAT, HERE)],
        [(0, CAT, 0.9, HERE), (0, CAT, 0.8, HERE), (1, CAT, 0.7, HERE)],
        HALF_FIRST,
        {"duplicate": 100 - HALF_FIRST},
    ),
    "background": (
        [(0, CAT, HERE), (1, CAT, HERE)],
        [(0, CAT, 0.9, HERE), (0, CAT, 0.8, ELSEWHERE), (1, CAT, 0.7, HERE)],
        HALF_FIRST,
        {"background": 100 - HALF_FIRST},
    ),
    "missed": (
        [(0, CAT, HERE), (1, CAT, HERE)],
        [(0, CAT, 0.9, HERE)],
        100 * 51 / 101,
        {"missed": 100 * 50 / 101},
    ),
}


@pytest.mark.numeric
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_found_and_its_gain_is_the_hand_s(kind: str) -> None:
    objects, found, before, expected = CASES[kind]
    ap50, gains, counts = errors(objects, found)
    assert ap50 == pytest.approx(before)
    assert gains == pytest.approx({name: expected.get(name, 0.0) for name in KINDS})
    assert counts == {kind: 1, **({"missed": 1} if kind == "both" else {})}


@pytest.mark.numeric
@pytest.mark.parametrize("kind", ["localisation", "duplicate"])
def test_voc_s_metric_and_boxes_are_its_own(kind: str) -> None:
    objects, found, *_ = CASES[kind]
    ap50, gains, counts = errors(objects, found, "voc")
    cat = {"localisation": 0.0, "duplicate": 100 * (6 + 5 * 2 / 3) / 11}[kind]  # 11 points: six of recall <= 0.5
    # A class without objects, here dog, counts as 0 in VOC's mean.
    assert (ap50, gains[kind], counts) == (pytest.approx(cat / 2), pytest.approx(50 - cat / 2), {kind: 1})


@pytest.mark.numeric
@pytest.mark.parametrize(("beside", "here", "before"), [(0.9, 0.7, 100 / 3), (0.7, 0.9, 100.0)])
def test_of_two_detections_of_an_object_the_better_one_remains(beside: float, here: float, before: float) -> None:
    found = [(0, CAT, beside, BESIDE), (0, CAT, 0.8, ELSEWHERE), (0, CAT, here, HERE)]
    ap50, gains, counts = errors([(0, CAT, HERE)], found)
    assert (ap50, ap50 + gains["localisation"]) == pytest.approx((before, 100.0))
    assert counts == {"localisation": 1, "background": 1}


def test_an_image_without_objects_has_background_alone() -> None:
    *_, counts = errors([(1, CAT, HERE)], [(0, CAT, 0.9, HERE), (1, CAT, 0.8, HERE)])
    assert counts == {"background": 1}


def test_boxes_of_voc_and_coco_are_in_a_detection_s_pixels_and_difficult_ones_and_crowds_do_not_count() -> None:
    voc = (Annotation(0, (1, 1, 10, 20)), Annotation(0, (1, 1, 5, 5), difficult=True))
    coco = (Annotation(0, (0, 0, 10, 20), crowd=True), Annotation(0, (0, 0, 10, 20)))
    for layout, things in (("voc", voc), ("coco", coco)):
        records = [DatasetDict("a.jpg", "a", 30, 30, things)]
        found = counted_objects(Dataset(Split("s", layout, Path()), records, ("cat",)))
        assert found.tolist() == [[0, 0, 0, 0, 10, 20]]
