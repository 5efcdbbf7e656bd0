"""The linear probe on RoI features: the detector's own features of the annotated boxes, a classifier as by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes
from torchvision.ops import roi_align

from ssl_transfer.console import call_main
from ssl_transfer.formats.results import EvaluationResult
from tests.transfer.engine.conftest import RequestFactory
from tools.evaluate import main
from transfer.engine import roi_probe
from transfer.engine.detection_data import NamingMapper, to_detectron2
from transfer.engine.prepare import resolve_trial
from transfer.engine.roi_probe import classify
from transfer.engine.trial import build_seeded_detector


def clusters(rng: np.random.Generator, count: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Points around three centres in 20 dimensions, at quite different scales, and the number of the centre."""
    labels = np.arange(count) % 3
    points = np.eye(20)[labels] + spread * rng.normal(size=(count, 20))
    return points * np.logspace(-3, 3, 20) + 5, labels


def test_the_classifier_separates_what_is_separable_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    for spread, least, most in ((0.1, 0.97, 1.0), (0.5, 0.6, 0.95)):
        (train, labels), (test, truth) = clusters(rng, 90, spread), clusters(rng, 300, spread)
        assert least <= np.mean(classify(train, labels, test, 3) == truth) <= most
    train, test = rng.normal(size=(90, 500)), rng.normal(size=(600, 500))
    labels, truth = rng.integers(0, 3, 90), rng.integers(0, 3, 600)
    assert 0.25 < np.mean(classify(train, labels, test, 3) == truth) < 0.42


def test_the_classifier_is_ridge_regression_with_the_best_penalty_left_one_out() -> None:
    rng = np.random.default_rng(1)
    (train, labels), (test, _) = clusters(rng, 40, 0.7), clusters(rng, 200, 0.7)
    found = classify(train, labels, test, 3)
    mean, spread = train.mean(0), train.std(0)
    x, z, y = (train - mean) / spread, (test - mean) / spread, np.eye(3)[labels]

    def ridge(x: np.ndarray, y: np.ndarray, z: np.ndarray, penalty: float) -> np.ndarray:
        """By the normal equations, with a constant that has no penalty."""
        one, fences = np.ones((len(x), 1)), np.diag([penalty] * x.shape[1] + [0.0])
        design = np.hstack([x, one])
        return np.hstack([z, np.ones((len(z), 1))]) @ np.linalg.solve(design.T @ design + fences, design.T @ y)

    scale = np.mean(np.linalg.svd(x, compute_uv=False) ** 2)
    scores = []
    for penalty in roi_probe.PENALTIES:
        kept = [np.arange(40) != index for index in range(40)]
        guesses = [ridge(x[k], y[k], x[~k], penalty * scale).argmax() for k in kept]
        scores.append(int(np.sum(np.asarray(guesses) == labels)))
    best = max(n for n, score in enumerate(scores) if score == max(scores))
    assert np.array_equal(found, ridge(x, y, z, roi_probe.PENALTIES[best] * scale).argmax(1))


@pytest.mark.parametrize("task", ["voc07", "coco"])
def test_features_are_those_of_the_detector_at_the_annotated_boxes(make_request: RequestFactory, task: str) -> None:
    prepared, read, _ = resolve_trial(make_request(task=task))
    detector = build_seeded_detector(prepared.cfg).eval()
    dicts = roi_probe._dicts([read.test], prepared)
    assert dicts and not any(thing.get("iscrowd") for one in dicts for thing in one["objects"])
    (batch, *_) = roi_probe._batches(dicts[:3], prepared)
    pooled = roi_probe._PooledBoxes(detector)(batch)
    prepared.cfg.INPUT.RANDOM_FLIP, prepared.cfg.INPUT.MIN_SIZE_TRAIN = "none", (prepared.cfg.INPUT.MIN_SIZE_TEST,)
    prepared.cfg.INPUT.MAX_SIZE_TRAIN = prepared.cfg.INPUT.MAX_SIZE_TEST
    trained = {record.file: to_detectron2(record, read.layout) for record in read.test.records}
    mapped = [NamingMapper(prepared.cfg, is_train=True)(trained[one["file_name"]]) for one in batch]
    boxes = [one["instances"].gt_boxes.tensor for one in mapped]  # as training would see them
    labels = [int(label) for one in mapped for label in one["instances"].gt_classes]
    assert [thing["category_id"] for one in batch for thing in one["objects"]] == labels
    for ours, theirs in zip(batch, boxes, strict=True):
        assert torch.allclose(ours["boxes"], theirs, atol=1e-3)
    with torch.no_grad():
        features = detector.backbone(detector.preprocess_image(batch).tensor)
        expected = detector.roi_heads._shared_roi_transform([features["res4"]], [Boxes(one) for one in boxes])
    assert pooled["res5"].shape == expected.shape[:2] and len(pooled["res4"]) == len(labels)
    assert torch.allclose(pooled["res5"], expected.mean((2, 3)), rtol=1e-3, atol=1e-4)


@pytest.fixture
def words(root: Path, toy_detection: Path, narrow_overlay: Path) -> list[str]:
    config = str(root / "configs/transfer/voc07.yaml")
    return ["roi", "--data", str(toy_detection), "--config-file", config, "--overlay", str(narrow_overlay)]


def test_the_command_prints_a_line_and_writes_a_sealed_result(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    assert call_main(main, [*words, "--weights", "scratch", "--untrained", "--output", str(first)]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and out.startswith("finished: roi of scratch (resnet50)") and "res5_top1" in out
    result = EvaluationResult.read(first / "result.json")
    metrics = result.metrics
    assert metrics is not None and result.kind == "roi" and result.settings["test_images"] == 8
    for stage in ("res4", "res5"):
        low, top1, high = (metrics[f"{stage}_{key}"] for key in ("low", "top1", "high"))
        assert low is not None and top1 is not None and high is not None and 0 <= low < top1 < high <= 100
        assert top1 == metrics[f"untrained_{stage}_top1"]  # scratch is untrained, with the same seed
    assert call_main(main, [*words, "--weights", "scratch", "--output", str(second)]) == 0
    again = json.loads((second / "result.json").read_text())["metrics"]
    assert again == {key: value for key, value in metrics.items() if not key.startswith("untrained")}
    capsys.readouterr()
    assert call_main(main, [*words, "--weights", "scratch", "--output", str(first)]) == 2
    assert "result.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--weights", "nowhere.pkl"], "nowhere.pkl"),
        (["--weights", "zoo:simsiam_200ep_b256"], "--output"),
        (["--weights", "scratch", "--resume"], "--resume"),
        (["--weights", "scratch", "--num-gpus", "2"], "--num-gpus"),
        (["--weights", "scratch", "--pretrain-epochs", "2"], "--pretrain-epochs"),
        (["--weights", "scratch", "--data", "nowhere"], "nowhere"),
        (["--weights", "scratch", "SOLVER.BASE_LRR", "1"], "BASE_LRR"),
    ],
)
def test_wrong_use_is_one_line(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], named: str
) -> None:
    assert call_main(main, [*words, *more]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(error) == 1 and named in error[0]


def test_an_fpn_detector_is_probed_after_each_stage_of_its_resnet(
    words: list[str], root: Path, make_request: RequestFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    words[words.index("--config-file") + 1] = str(root / "configs/transfer/voc07_fpn.yaml")
    assert call_main(main, [*words, "--weights", "scratch"]) == 0
    assert "finished: roi of scratch" in capsys.readouterr().out
    prepared, read, _ = resolve_trial(make_request(task="voc07_fpn"))
    detector = build_seeded_detector(prepared.cfg).eval()
    (batch, *_) = roi_probe._batches(roi_probe._dicts([read.test], prepared)[:3], prepared)
    pooled = roi_probe._PooledBoxes(detector)(batch)
    with torch.no_grad():
        features = detector.backbone.bottom_up(detector.preprocess_image(batch).tensor)
    size = prepared.cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
    for stage, stride in (("res4", 16), ("res5", 32)):
        expected = roi_align(features[stage], [one["boxes"] for one in batch], size, 1 / stride, aligned=True)
        assert pooled[stage].shape == expected.shape[:2]
        assert torch.allclose(pooled[stage], expected.mean((2, 3)), rtol=1e-3, atol=1e-5)
