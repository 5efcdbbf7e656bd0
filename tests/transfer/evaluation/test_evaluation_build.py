"""What a result keeps of an evaluator's answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from transfer.evaluation.evaluators import build_evaluator, metrics_of
from transfer.tasks.datasets import Split
from transfer.tasks.task import Dataset

NAN = float("nan")


def dataset(layout: str, *classes: str) -> Dataset:
    return Dataset(Split("own", layout, Path("x")), [], classes)


def test_boxes_and_masks_with_each_class() -> None:
    values = {"AP": 1.0, "AP50": 2.0, "AP75": 3.0, "APs": NAN, "AP-cat": 4.0, "AP-dog": NAN}
    kept = {"AP": 1.0, "AP50": 2.0, "AP75": 3.0, "per_class": {"cat": 4.0, "dog": None}}
    assert metrics_of({"bbox": values, "segm": values}, dataset("coco", "cat", "dog")) == {"bbox": kept, "segm": kept}


def test_a_detector_that_finds_nothing_has_an_ap_of_zero_on_coco() -> None:
    nothing = {"AP": NAN, "AP50": NAN, "AP75": NAN}
    assert metrics_of({"bbox": nothing}, dataset("coco", "cat", "dog"))["bbox"] == {
        "AP": 0.0,
        "AP50": 0.0,
        "AP75": 0.0,
        "per_class": {},
    }
    assert metrics_of({"bbox": nothing}, dataset("voc", "cat", "dog"))["bbox"]["AP"] is None


def test_a_single_class_has_its_own_ap_too() -> None:
    values = {"AP": 1.0, "AP50": 2.0, "AP75": 3.0}
    assert metrics_of({"bbox": values}, dataset("coco", "cat"))["bbox"]["per_class"] == {"cat": 1.0}


def test_an_unknown_evaluator_is_our_own_bug() -> None:
    with pytest.raises(ValueError, match="cocoeval"):
        build_evaluator("cocoeval", dataset("coco", "cat"), "x", True)
