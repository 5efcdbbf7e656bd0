"""Each test image is measured once over all processes, whichever evaluator measures."""

from __future__ import annotations

import json
from pathlib import Path

import coco_cases as cases
import evaluate_in_processes
import numpy as np
import pytest

from transfer.engine.detection_data import register_metadata
from transfer.evaluation.evaluators import build_evaluator, check_each_once
from transfer.evaluation.matching import describe_detections


@pytest.mark.parametrize("name", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("wrong", ["twice", "missing", "unknown"])
def test_an_image_too_many_or_too_few_is_refused(tmp_path: Path, name: str, wrong: str) -> None:
    rng = np.random.default_rng(0)
    dataset = cases.made_annotations(tmp_path, rng)
    found = cases.detections(dataset, rng, 2, 2)
    found = found[1:] if wrong == "missing" else found + found[:1]
    if wrong == "unknown":
        found[-1] = ({"image_id": 999}, found[-1][1])
    says = {"twice": "measured 2 times", "missing": "1 test images were not measured", "unknown": "does not list it"}
    evaluator = build_evaluator(name, dataset, register_metadata(dataset), masks=True)
    with pytest.raises(RuntimeError, match=says[wrong]):
        cases.answer(evaluator, found)
    evaluator.reset()
    assert evaluator.seen == []


def test_each_image_must_come_once() -> None:
    check_each_once(["a", "b"], ["b", "a"])
    with pytest.raises(RuntimeError, match="'a' was measured 2 times"):
        check_each_once(["a", "b", "a"], ["a", "b"])


def test_two_processes_gather_every_image_once(tmp_path: Path) -> None:
    """Shards of different sizes; both answers equal one process's; a padded shard is refused on every rank."""
    evaluate_in_processes.run(tmp_path, processes=2)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    dataset, found = evaluate_in_processes.world(tmp_path)
    assert first["hotcoco"] == first["pycocotools"] == json.loads(json.dumps(cases.ours(dataset, found)))
    assert second["hotcoco"] is None
    evaluator = build_evaluator("pycocotools", dataset, register_metadata(dataset), masks=True)
    cases.answer(evaluator, found)
    collected = evaluator.collector.gather()
    assert collected is not None
    whole = describe_detections(dataset, collected, toy=False, keep_masks=True).write(tmp_path / "one process")
    assert first["hotcoco, file"] == first["pycocotools, file"] == whole
    for said in (first, second):
        assert all("measured 2 times" in said[f"{name}, padded"] for name in ("hotcoco", "pycocotools"))
