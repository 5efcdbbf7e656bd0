"""The pictures at a trial's end: which images, what is on them, and that nothing else notices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from ssl_transfer.errors import UserError
from transfer.engine.predictions import COLOURS, LONGEST_SIDE, choose_images, draw_predictions, picture
from transfer.engine.prepare import TrialRequest, prepare
from transfer.engine.trial import build_seeded_detector
from transfer.tasks.datasets import Annotation, DatasetDict, Split
from transfer.tasks.task import Dataset

RequestFactory = Callable[..., TrialRequest]


def records(count: int, every: int = 1) -> list[DatasetDict]:
    """Images of which each `every`-th has an object to find."""
    things = (Annotation(0, (1.0, 1, 5, 5)),)
    hard = (Annotation(0, (1.0, 1, 5, 5), difficult=True), Annotation(0, (1.0, 1, 5, 5), crowd=True))
    return [DatasetDict("x", index, 10, 10, hard if index % every else things) for index in range(count)]


def test_images_are_evenly_spaced_over_those_with_objects() -> None:
    assert [record.image_id for record in choose_images(records(100), 4)] == [12, 37, 62, 87]
    assert [record.image_id for record in choose_images(records(100, every=10), 2)] == [20, 70]
    assert [record.image_id for record in choose_images(records(3), 9)] == [0, 1, 2]
    assert choose_images(records(5), 0) == []
    assert len(choose_images([DatasetDict("x", 1, 10, 10)], 4)) == 1


@pytest.fixture
def drawn(tmp_path: Path) -> Callable[..., np.ndarray]:
    """A grey image of 100 × 80 with one object at (10, 10)-(40, 40) and the detections asked for, as an array."""
    Image.new("RGB", (100, 80), (90, 90, 90)).save(tmp_path / "x.png")
    record = DatasetDict(str(tmp_path / "x.png"), 1, 100, 80, (Annotation(1, (10.0, 10, 30, 30), segmentation=None),))
    dataset = Dataset(Split("s", "coco", tmp_path), [record], ("cat", "dog"), (1, 2))

    def draw(boxes: list[list[float]], scores: list[float], masks: torch.Tensor | None = None) -> np.ndarray:
        found = Instances((80, 100))
        found.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
        found.scores, found.pred_classes = torch.tensor(scores), torch.zeros(len(scores), dtype=torch.int64)
        if masks is not None:
            found.pred_masks = masks
        return np.asarray(picture(record, found, dataset)).astype(int)

    return draw


def near(image: np.ndarray, colour: str) -> int:
    """How many pixels have (nearly) this colour."""
    wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return int((np.abs(image - wanted).max(axis=2) < 12).sum())


def test_a_detection_of_at_least_the_threshold_is_drawn(drawn: Callable[..., np.ndarray]) -> None:
    left, right = [5.0, 45, 35, 75], [50.0, 20, 90, 60]
    one = drawn([right], [0.5])
    assert one.shape == (round(80 * LONGEST_SIDE / 100) + 26, LONGEST_SIDE, 3)
    assert near(one, COLOURS[0]) > 2 * (40 + 40) * LONGEST_SIDE / 100
    assert np.array_equal(drawn([left, right], [0.49, 0.5]), one)  # what is below is left out


def test_where_all_are_below_it_the_best_are_drawn_as_many_as_objects(drawn: Callable[..., np.ndarray]) -> None:
    left, right = [5.0, 45, 35, 75], [50.0, 20, 90, 60]
    best = drawn([right], [0.2])
    assert near(best, COLOURS[0]) > 2 * (40 + 40) * LONGEST_SIDE / 100
    assert np.array_equal(drawn([right, left], [0.2, 0.1]), best)
    assert near(drawn([], []), COLOURS[0]) == 0
    assert near(drawn([], []), "#ffffff") > 300  # the object's dashes and name, and the line below


def test_the_object_is_drawn_where_it_is(drawn: Callable[..., np.ndarray]) -> None:
    scale = LONGEST_SIDE / 100
    rows, columns = np.nonzero(np.abs(drawn([], [])[: round(80 * scale)] - 90).max(axis=2) > 20)
    assert rows.min() == pytest.approx(10 * scale, abs=3) and rows.max() == pytest.approx(40 * scale, abs=3)
    assert columns.min() == pytest.approx(10 * scale, abs=3) and columns.max() == pytest.approx(40 * scale, abs=3)


def test_a_mask_is_filled(drawn: Callable[..., np.ndarray]) -> None:
    mask = torch.zeros(1, 80, 100, dtype=torch.bool)
    mask[0, 45:75, 55:85] = True
    plain, filled = drawn([[50.0, 40, 90, 78]], [0.9]), drawn([[50.0, 40, 90, 78]], [0.9], mask)
    changed = np.abs(plain - filled).max(axis=2) > 20
    assert changed.sum() == pytest.approx(30 * 30 * (LONGEST_SIDE / 100) ** 2, rel=0.05)


def test_boxes_beyond_the_image_or_empty_are_drawn(drawn: Callable[..., np.ndarray]) -> None:
    drawn([[-20.0, -20, 300, 300], [50, 50, 50, 50], [60, 60, 40, 40], [99, 79, 100, 80]], [0.9, 0.8, 0.7, 0.6])


def test_drawing_changes_neither_detector_nor_random_state(make_request: RequestFactory, tmp_path: Path) -> None:
    prepared, task = prepare(make_request(task="coco"))
    model = build_seeded_detector(prepared.cfg)
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()
    files = draw_predictions(model, task.test, prepared.cfg, tmp_path)
    again = [file.read_bytes() for file in files]
    assert draw_predictions(model, task.test, prepared.cfg, tmp_path) == files
    assert [file.read_bytes() for file in files] == again
    assert len(files) == 4 and all(file.parent == tmp_path / "predictions" for file in files)
    assert sorted(file.name for file in files) == sorted(file.name for file in (tmp_path / "predictions").iterdir())
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), torch_before)
    after = np.random.get_state()
    assert after[2] == numpy_before[2] and np.array_equal(after[1], numpy_before[1])


def test_a_negative_number_is_refused(make_request: RequestFactory) -> None:
    with pytest.raises(UserError, match=r"TRANSFER.PREDICTIONS must be at least 0"):
        prepare(make_request("TRANSFER.PREDICTIONS", "-1"))
