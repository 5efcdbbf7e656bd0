"""Matches give the evaluators' AP to the last digit, and so do detections that went through a file of COCO's JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import coco_cases as cases
import numpy as np
import pytest
import test_voc_metric as voc_cases
from pycocotools import mask as rle

from ssl_transfer.errors import UserError
from ssl_transfer.formats.detections import AREAS, Detections, Matches
from transfer.engine.detection_data import register_metadata
from transfer.evaluation.evaluators import EachImageOnce, build_evaluator
from transfer.evaluation.foreign import is_result_list, read_foreign
from transfer.evaluation.matching import DetectedObjects, describe_detections, match, truth_digest
from transfer.resampling.weighted_ap import average_precision
from transfer.tasks.datasets import Annotation, DatasetDict, Split
from transfer.tasks.task import Dataset

SIZES = dict(zip(AREAS[1:], ("APs", "APm", "APl"), strict=True))


def measured(
    name: str, dataset: Dataset, found: Any, masks: bool
) -> tuple[dict[str, dict[str, float]], DetectedObjects]:
    """An evaluator's answer, and the detections that were collected on the way."""
    evaluator: EachImageOnce = build_evaluator(name, dataset, register_metadata(dataset), masks)
    answer = cases.answer(evaluator, found)
    collected = evaluator.collector.gather()
    assert collected is not None
    return answer, collected


def same_digits(answer: dict[str, float], matches: Matches, dataset: Dataset, metric: str) -> None:
    classes = len(dataset.classes)
    ours = average_precision(matches, classes, metric)
    if "APs" in answer:
        ours |= {SIZES[area]: average_precision(matches, classes, metric, area=area)["AP"] for area in SIZES}
    np.testing.assert_array_equal([answer[key] for key in ours], list(ours.values()))


@pytest.mark.numeric
@pytest.mark.parametrize("evaluator", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize(("most", "decimals"), [(3, 1), (12, 2), (300, 6)])
def test_coco_to_the_last_digit(tmp_path: Path, evaluator: str, most: int, decimals: int) -> None:
    """Crowds, ties of scores, empty images, over 100 detections of a class; boxes and masks, all and each size."""
    for seed in range(4 if most < 100 else 1):
        rng = np.random.default_rng(seed)
        dataset = cases.made_annotations(tmp_path / str(seed), rng)
        answer, found = measured(evaluator, dataset, cases.detections(dataset, rng, most, decimals), masks=True)
        matches = match(dataset, found)
        assert list(matches) == list(answer) == ["bbox", "segm"]
        for branch, values in answer.items():
            same_digits(values, matches[branch], dataset, "coco")


@pytest.mark.numeric
@pytest.mark.parametrize("year", [2007, 2012])
def test_voc_to_the_last_digit(tmp_path: Path, year: int) -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        dataset = voc_cases.make_set(tmp_path / str(seed), rng, 20, year)
        answer, found = measured("exact", dataset, voc_cases.detections(rng, dataset, 8, seed % 3 + 1), masks=False)
        same_digits(answer["bbox"], match(dataset, found)["bbox"], dataset, f"voc{year}")


def small_voc() -> tuple[Dataset, DetectedObjects]:
    """One image with a small object, a difficult one and a large one; a hit of each, a second of the small, a miss."""
    boxes = [(1, 1, 20, 20), (101, 1, 140, 40), (201, 201, 320, 320)]
    things = tuple(Annotation(0, box, difficult=index == 1) for index, box in enumerate(boxes))
    dataset = Dataset(Split("made", "voc", Path()), [DatasetDict("a.jpg", "a", 400, 400, things)], ("cat",))
    corners = np.array([*boxes, boxes[0], (300, 1, 399, 99)], np.float32)
    corners[:, :2] -= 1  # the detector counts from 0
    sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).astype(np.float64)
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    return dataset, DetectedObjects(np.zeros(5, np.int32), np.zeros(5, np.int16), score, corners, sides)


def test_flags_and_sizes_by_hand() -> None:
    dataset, found = small_voc()
    matches = match(dataset, found)["bbox"]
    every = (1 << 10) - 1
    assert matches.detection.tolist() == [0, 1, 2, 3, 4] and matches.score.tolist() == [0.9, 0.8, 0.7, 0.6, 0.5]
    assert (matches.hit // every).tolist() == [[1, 0, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0]]
    assert (matches.ignored // every).tolist() == [
        [0, 1, 0, 0, 0],  # the difficult one
        [0, 1, 1, 0, 1],  # what is large, whether it hits or not
        [1, 1, 1, 1, 1],
        [1, 1, 0, 1, 0],  # the second of the small one, too
    ]
    assert matches.object_area.tolist() == [0b0011, 0b1001]


def test_equal_test_sets_have_equal_digests(tmp_path: Path) -> None:
    dataset, _ = small_voc()
    record = dataset.records[0]
    moved = Dataset(dataset.split, [DatasetDict("b.jpg", "a", 400, 400, record.annotations)], dataset.classes)
    fewer = Dataset(dataset.split, [DatasetDict("a.jpg", "a", 400, 400, record.annotations[1:])], dataset.classes)
    assert truth_digest(dataset) == truth_digest(moved) != truth_digest(fewer)


def result_list(dataset: Dataset, found: DetectedObjects, numbers: Any) -> list[dict[str, Any]]:
    """As Detectron2 writes `coco_instances_results.json`."""
    entries = []
    for row, image in enumerate(found.image.tolist()):
        record = dataset.records[image]
        category, box = int(numbers[found.label[row]]), found.boxes[row].tolist()
        entry = {"image_id": record.image_id, "category_id": category, "bbox": box, "score": float(found.score[row])}
        if found.masks is not None:
            counts = found.masks[row].decode()
            entry["segmentation"] = {"size": [record.height, record.width], "counts": counts}
        entries.append(entry)
    return entries


@pytest.mark.numeric
def test_a_foreign_file_gives_the_same_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    coco = cases.made_annotations(tmp_path / "coco", rng)
    voc = voc_cases.make_set(tmp_path / "voc", rng, 20, 2007)
    sets = [
        (coco, measured("hotcoco", coco, cases.detections(coco, rng, 5, 2), masks=True)[1], coco.category_ids),
        (voc, measured("exact", voc, voc_cases.detections(rng, voc, 5, 2), masks=False)[1], range(1, 4)),
    ]
    for dataset, found, numbers in sets:
        entries = result_list(dataset, found, numbers)
        file = tmp_path / "coco_instances_results.json"
        ours = describe_detections(dataset, found, toy=False)
        file.write_text(json.dumps(sorted(entries, key=lambda entry: str(entry["image_id"]), reverse=True)))
        assert is_result_list(file)
        theirs = read_foreign(file, dataset)
        assert list(theirs.matches) == list(ours.matches)
        for branch, matches in ours.matches.items():
            classes = len(dataset.classes)
            expected = average_precision(matches, classes, ours.metric)
            assert average_precision(theirs.matches[branch], classes, ours.metric) == expected
            np.testing.assert_array_equal(theirs.resamples[branch]["AP"], ours.resamples[branch]["AP"])
        assert (theirs.truth, theirs.draws, theirs.images) == (ours.truth, ours.draws, ours.images)


def test_a_foreign_files_other_spellings(tmp_path: Path) -> None:
    """VOC's images as numbers; masks as polygons or as numbers of run lengths."""
    voc = voc_cases.make_set(tmp_path / "voc", np.random.default_rng(0), 3, 2007)
    coco = cases.made_annotations(tmp_path / "coco", np.random.default_rng(0))
    entry = {"category_id": 1, "bbox": [1.0, 2.0, 30.0, 40.0], "score": 0.5}
    file = tmp_path / "found.json"
    file.write_text(json.dumps([{**entry, "image_id": one} for one in (1, "000001", "2", "000000")]))
    names = read_foreign(file, voc)
    assert [names.images[image] for image in names.image] == sorted(
        ["000001", "000001", "000002", "000000"], key=names.images.index
    )
    record = coco.records[0]
    polygon = [[1.0, 2.0, 31.0, 2.0, 31.0, 42.0, 1.0, 42.0]]
    (drawn,) = rle.frPyObjects(polygon, record.height, record.width)
    bits = rle.decode(drawn).T.reshape(-1)
    runs = np.diff([0, *(np.flatnonzero(np.diff(bits)) + 1), len(bits)]).tolist()
    numbers = {"size": [record.height, record.width], "counts": runs}
    file.write_text(json.dumps([{**entry, "image_id": record.image_id, "segmentation": m} for m in (polygon, numbers)]))
    found = read_foreign(file, coco)
    assert set(found.matches) == {"bbox", "segm"}
    np.testing.assert_array_equal(found.matches["segm"].ignored[:, 0], found.matches["segm"].ignored[:, 1])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image_id": 77}, "entry 2: image '77' is not in random_2007"),
        ({"category_id": 0}, "entry 2: category_id 0 is none of random_2007: 1, 2, 3"),
        ({"score": float("nan")}, "entry 2: a value is not finite"),
        ({"bbox": [1, 2, 3]}, "entry 2: a value is not finite or of another type"),
        ({"bbox": "wide"}, "entry 2: could not convert"),
        ({"image_id": None}, "entry 2: a value is"),
    ],
)
def test_a_wrong_foreign_file_is_refused_in_one_line(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    voc = voc_cases.make_set(tmp_path / "voc", np.random.default_rng(0), 3, 2007)
    entry = {"image_id": 1, "category_id": 1, "bbox": [1.0, 2.0, 30.0, 40.0], "score": 0.5}
    file = tmp_path / "found.json"
    file.write_text(json.dumps([entry, {**entry, **change}]))
    with pytest.raises(UserError, match=says) as refused:
        read_foreign(file, voc)
    assert str(refused.value).startswith(str(file)) and "\n" not in str(refused.value)


def test_a_detector_that_finds_nothing_has_an_ap_of_0(tmp_path: Path) -> None:
    (tmp_path / "f").write_text(" []")
    rng = np.random.default_rng(0)
    for dataset in (voc_cases.make_set(tmp_path / "voc", rng, 9, 2012), cases.made_annotations(tmp_path / "coco", rng)):
        found = read_foreign(tmp_path / "f", dataset)
        found.write(tmp_path / "kept")
        again = Detections.read(tmp_path / "kept")
        for branch, matches in again.matches.items():
            assert set(average_precision(matches, len(dataset.classes), found.metric).values()) == {0.0}
            assert not np.nan_to_num(again.resamples[branch]["AP"]).any()


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    coco = cases.made_annotations(tmp_path / "coco", np.random.default_rng(0))
    entry = {"image_id": 1, "category_id": 1, "bbox": [1.0, 2.0, 30.0, 40.0], "score": 0.5}
    (tmp_path / "f").write_text(json.dumps([{**entry, "segmentation": {"size": [7, 7], "counts": "a"}}]))
    with pytest.raises(UserError, match=r"entry 1: its segmentation cannot be read \(its mask has the size \[7, 7\]"):
        read_foreign(tmp_path / "f", coco)


def test_matching_needs_no_torch() -> None:
    code = "import sys, transfer.evaluation.foreign; sys.exit('torch' in sys.modules or 'detectron2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_masks_are_kept_on_request(tmp_path: Path) -> None:
    coco = cases.made_annotations(tmp_path / "coco", np.random.default_rng(1))
    _, found = measured("hotcoco", coco, cases.detections(coco, np.random.default_rng(1), 5, 2), masks=True)
    assert describe_detections(coco, found, toy=True).masks is None
    kept = describe_detections(coco, found, toy=True, keep_masks=True)
    assert kept.masks == tuple(found.masks or ()) and kept.masks
    kept.write(tmp_path / "f")
    assert Detections.read(tmp_path / "f").masks == kept.masks
