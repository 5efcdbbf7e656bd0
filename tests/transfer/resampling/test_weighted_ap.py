"""AP of resampled images is what the metric computes on a set in which the images are repeated."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_transfer.formats.detections import AREAS, Matches
from tests.transfer.resampling import references as reference
from transfer.resampling.resample import SEED, multiplicities, resample
from transfer.resampling.weighted_ap import average_precision, per_class

pytestmark = pytest.mark.numeric
IMAGES = 25


def drawn(count: int, images: int = IMAGES) -> np.ndarray:
    return multiplicities(np.random.default_rng(SEED).integers(0, images, (count, images)), images)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("year", [2007, 2012])
def test_voc_without_weights_has_the_digits_of_the_metric(year: int, seed: int) -> None:
    case = reference.random_case(np.random.default_rng(seed), IMAGES)
    matches, expected = reference.voc_matches(case), reference.voc_percent(case, year)
    for weights in (None, np.ones(IMAGES, dtype=np.int64)):
        assert average_precision(matches, 4, f"voc{year}", weights) == expected
    assert 10 < expected["AP"] < 60


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("area", range(4))
def test_coco_without_weights_has_the_digits_of_pycocotools(area: int, seed: int) -> None:
    case = reference.random_case(np.random.default_rng(seed), IMAGES)
    matches, evaluation = reference.coco_matches(case, IMAGES), reference.coco_evaluation(case, IMAGES)
    expected = reference.coco_percent(evaluation, area)
    for weights in (None, np.ones(IMAGES, dtype=np.int64)):
        found = average_precision(matches, 4, "coco", weights, area=AREAS[area])
        assert found == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
        each = per_class(matches, 4, "coco", weights, area=AREAS[area])
        for label in range(4):
            expected_class = reference.coco_percent(evaluation, area, label)
            assert {k: v[label] for k, v in each.items()} == pytest.approx(expected_class, rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("metric", ["voc2007", "voc2012", "coco"])
def test_a_resample_is_the_metric_of_repeated_images(metric: str) -> None:
    case = reference.random_case(np.random.default_rng(5), IMAGES)
    matches = reference.coco_matches(case, IMAGES) if metric == "coco" else reference.voc_matches(case)
    found = resample(matches, images=IMAGES, classes=4, metric=metric, resamples=40)
    for b, weights in enumerate(drawn(40)):
        again = reference.repeated(case, weights)
        if metric == "coco":
            expected = reference.coco_percent(reference.coco_evaluation(again, IMAGES))
        else:
            expected = reference.voc_percent(again, int(metric[3:]))
        one = average_precision(matches, 4, metric, weights)
        for name in ("AP", "AP50", "AP75"):
            assert found.values[name][b] == pytest.approx(expected[name], abs=1e-9)
            assert one[name] == pytest.approx(expected[name], abs=1e-9)
    assert np.ptp(found.values["AP"]) > 5  # they are no copies of the point


@pytest.mark.parametrize("metric", ["voc2007", "voc2012", "coco"])
@pytest.mark.parametrize("area", ["all", "small"])
def test_few_objects_reach_recalls_exactly(metric: str, area: str) -> None:
    """Numbers of objects such as 10, 20 and 100 reach 3/10 or 35/100 exactly, which the metric's recalls exceed."""
    rng = np.random.default_rng(1)
    case = reference.random_case(rng, 60, objects=120)
    matches = reference.coco_matches(case, 60)
    found = resample(matches, images=60, classes=4, metric=metric, area=area, resamples=200)
    for b, weights in enumerate(drawn(200, 60)):
        expected = average_precision(matches, 4, metric, weights, area=area)
        assert found.values["AP50"][b] == pytest.approx(expected["AP50"], abs=1e-9)
        each = per_class(matches, 4, metric, weights, area=area)["AP"]
        assert found.per_class[:, b] == pytest.approx(each, abs=1e-9, nan_ok=True)


def single(labels: list[int], images: list[int]) -> Matches:
    """One object and one perfect detection in each of these images."""
    count = len(labels)
    image, label = np.array(images, dtype=np.int32), np.array(labels, dtype=np.int16)
    hit = np.full((4, count), 1023, dtype=np.uint16)
    area = np.full(count, 3, dtype=np.uint8)
    return Matches(image, label, np.ones(count), hit, hit * 0, np.arange(count, dtype=np.int32), image, label, area)


@pytest.mark.parametrize("metric", ["voc2007", "voc2012", "coco"])
def test_a_class_that_a_resample_lacks_is_left_out(metric: str) -> None:
    """Class 1 is in image 2 alone; class 2 has no object at all: VOC's metric gives it 0, COCO's leaves it out."""
    matches, weights = single([0, 0, 1], [0, 1, 2]), np.array([1, 2, 0])
    expected = 100.0 if metric == "coco" else 50.0
    assert average_precision(matches, 3, metric, weights)["AP"] == pytest.approx(expected)
    found = resample(matches, images=3, classes=3, metric=metric, resamples=200)
    lacking = drawn(200, 3)[:, 2] == 0
    assert 0 < lacking.sum() < 200
    assert found.values["AP"][lacking] == pytest.approx(np.full(lacking.sum(), expected))
    assert np.isnan(found.per_class[1, lacking]).all() and (found.per_class[1, ~lacking] > 99).all()
    assert np.isnan(average_precision(matches, 3, metric, area="large")["AP"])


def test_the_draws_depend_on_the_number_of_images_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = single([0, 1], [0, 4]), single([1], [3])
    first = resample(one, images=9, classes=2, metric="coco")
    assert len(first.values["AP"]) == 2000
    monkeypatch.setattr("transfer.resampling.resample.BLOCK", 7)
    again = resample(other, images=9, classes=5, metric="voc2007")
    assert again.draws == first.draws
    assert resample(one, images=10, classes=2, metric="coco").draws != first.draws


def test_a_single_image_has_one_resample() -> None:
    found = resample(single([0], [0]), images=1, classes=1, metric="voc2012")
    assert found.values["AP"].shape == (2000,) and np.ptp(found.values["AP"]) == 0
