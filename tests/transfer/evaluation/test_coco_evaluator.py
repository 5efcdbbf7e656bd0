"""COCO's metric through hotcoco: Detectron2's and pycocotools' digits, and what cannot be computed."""

from __future__ import annotations

import math
from pathlib import Path

import coco_cases as cases
import numpy as np
import pytest
from detectron2.structures import Instances

from transfer.evaluation import coco_evaluator as coco
from transfer.evaluation.evaluators import metrics_of
from transfer.tasks.classes import COCO
from transfer.tasks.datasets import Split
from transfer.tasks.task import Dataset, read_split


def gap(mine: dict[str, dict[str, float]], peers: dict[str, dict[str, float]]) -> float:
    """The largest difference between two answers, which must have the same names and the same NaNs."""
    assert {kind: sorted(values) for kind, values in mine.items()} == {
        kind: sorted(values) for kind, values in peers.items()
    }
    pairs = [(mine[kind][name], value) for kind, values in peers.items() for name, value in values.items()]
    assert [math.isnan(a) for a, _ in pairs] == [math.isnan(b) for _, b in pairs]
    return max((abs(a - b) for a, b in pairs if not math.isnan(b)), default=0.0)


def a_case(folder: Path, seed: int) -> tuple[Dataset, cases.Batches]:
    rng = np.random.default_rng(seed)
    dataset = cases.made_annotations(folder, rng, images=int(rng.integers(1, 7)), classes=int(rng.integers(2, 5)))
    return dataset, cases.detections(dataset, rng, most=int(rng.integers(6)), decimals=int(rng.choice([1, 2, 6])))


@pytest.mark.parametrize("seed", range(12))
def test_the_digits_equal_pycocotools(tmp_path: Path, seed: int) -> None:
    dataset, found = a_case(tmp_path, seed)
    assert gap(cases.ours(dataset, found), cases.theirs(dataset, found)) <= 1e-9


@pytest.mark.slow
def test_the_digits_equal_pycocotools_a_thousand_times(tmp_path: Path) -> None:
    measured = 0.0
    for seed in range(1000, 2000):
        dataset, found = a_case(tmp_path, seed)
        mine = cases.ours(dataset, found)
        assert gap(mine, cases.theirs(dataset, found)) <= 1e-9, f"seed {seed}"
        measured = max(measured, mine["bbox"]["AP"] if mine["bbox"]["AP"] < 100 else 0)
    assert measured > 10


def test_the_digits_equal_pycocotools_on_the_real_annotations(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "detection/coco"
    split = Split("real", "coco", folder / "val2017", annotations=folder / "annotations/instances_val2017.json")
    dataset, rng = read_split(split, COCO), np.random.default_rng(5)
    assert any(thing.crowd for record in dataset.records for thing in record.annotations)
    for seed in range(2):
        some = cases.part(dataset, np.random.default_rng(seed).permutation(len(dataset.records))[:8].tolist(), tmp_path)
        found = cases.detections(some, rng, most=8, decimals=2)
        mine = cases.ours(some, found)
        assert gap(mine, cases.theirs(some, found)) <= 1e-9
        assert 0 < mine["segm"]["AP"] < 100


def test_only_boxes_are_evaluated_where_no_masks_are_predicted(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    dataset = cases.made_annotations(tmp_path, rng)
    found = cases.detections(dataset, rng, 5, 2, masks=False)
    mine = cases.ours(dataset, found, masks=False)
    assert list(mine) == ["bbox"]
    assert gap(mine, cases.theirs(dataset, found, masks=False)) == 0


@pytest.mark.parametrize("change", ["scores", "boxes", "classes", "order"])
def test_a_change_in_the_detections_changes_the_digits(tmp_path: Path, change: str) -> None:
    """What the equality above rests on: the cases are not so easy that every evaluator agrees on them."""
    rng = np.random.default_rng(3)
    dataset = cases.made_annotations(tmp_path, rng, images=20)
    found = cases.detections(dataset, rng, most=4, decimals=2, masks=False)
    peers = cases.theirs(dataset, found, masks=False)
    changed = list(reversed(found)) if change == "order" else found
    for _, output in found:
        instances = output["instances"]
        if change == "scores":
            instances.scores = 1 - instances.scores
        if change == "boxes":
            instances.pred_boxes.tensor[:, 2:] += 1
        if change == "classes":
            instances.pred_classes = (instances.pred_classes + 1) % len(dataset.classes)
        if change == "order" and len(instances):
            output["instances"] = instances[list(reversed(range(len(instances))))]
    assert gap(cases.ours(dataset, changed, masks=False), peers) > 1e-6


def test_a_trial_that_predicts_nothing_has_detectron2_s_nan_and_a_result_of_zero(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    dataset = cases.made_annotations(tmp_path, rng)
    found = [(image, {"instances": output["instances"][:0]}) for image, output in cases.detections(dataset, rng, 3, 2)]
    mine = cases.ours(dataset, found)
    assert gap(mine, cases.theirs(dataset, found)) == 0
    assert all(math.isnan(value) for value in mine["bbox"].values())
    kept = {"AP": 0.0, "AP50": 0.0, "AP75": 0.0, "per_class": {}}
    assert metrics_of(mine, dataset) == {"bbox": kept, "segm": kept}
    assert coco.detections_of(1, found[0][1]["instances"], masks=True).masks == []


def test_ap_per_class_of_a_single_class_and_of_one_without_objects() -> None:
    precision = np.full((10, 101, 2, 4, 3), 0.5)
    precision[:, :, 1] = -1
    both = coco.summarize(precision, ["cat", "dog"])
    assert both["AP-cat"] == both["AP"] == 50
    assert math.isnan(both["AP-dog"])
    assert set(coco.summarize(precision[:, :, :1], ["cat"])) == set(coco.NUMBERS)
    assert math.isnan(coco.summarize(precision[:, :, 1:], ["dog"])["AP"])


def test_an_image_without_detections_is_counted_as_one() -> None:
    found = coco.detections_of(7, _nothing(), masks=False)
    assert (found.image_id, len(found.boxes), found.masks) == (7, 0, None)


def _nothing() -> Instances:
    import torch
    from detectron2.structures import Boxes

    instances = Instances((10, 10))
    instances.pred_boxes, instances.scores = Boxes(torch.zeros(0, 4)), torch.zeros(0)
    instances.pred_classes = torch.zeros(0, dtype=torch.int64)
    return instances
