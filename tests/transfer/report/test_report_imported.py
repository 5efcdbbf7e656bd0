"""Trials run elsewhere: Detectron2's own two ways of writing an evaluation down."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest

from ssl_transfer.errors import UserError
from transfer.report.reading import imported_trial

BOX = {"AP": 57.0, "AP50": 82.4, "AP75": 63.6}


def metrics_json(path: Path, *lines: dict, tail: str = "") -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return path


def test_the_last_evaluation_of_a_metrics_json_counts(tmp_path: Path) -> None:
    early = {"iteration": 10, **{f"bbox/{k}": v - 20 for k, v in BOX.items()}}
    late = {"iteration": 99, "total_loss": 0.3, **{f"bbox/{k}": v for k, v in BOX.items()}, "bbox/AP-cat": 60.0}
    path = metrics_json(
        tmp_path / "metrics.json", early, {"iteration": 20, "total_loss": 1.0}, late, tail='{"iteration": 100, "bbo'
    )
    trial = imported_trial(path, "theirs", "voc0712_trainval")
    assert trial.metrics == {"bbox": BOX}
    assert trial.per_class == {"bbox": {"cat": 60.0}}
    assert (trial.imported, trial.seed, trial.row, trial.task) == (True, None, "theirs", "voc0712_trainval")


def test_copypaste_lines_as_detectron2_prints_them(tmp_path: Path) -> None:
    from detectron2.evaluation import print_csv_format

    stream = io.StringIO()
    logger = logging.getLogger("detectron2.evaluation.testing")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("[11/21 20:00:00] d2.evaluation.testing INFO: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        print_csv_format({"bbox": {"AP": 1.0, "AP50": 2.0, "AP75": 3.0}})
        print_csv_format(
            {"bbox": {**BOX, "APs": float("nan"), "AP-cat": 1.0}, "segm": {k: v - 1 for k, v in BOX.items()}}
        )
    finally:
        logger.removeHandler(handler)
    (tmp_path / "log.txt").write_text("some line\n" + stream.getvalue())
    trial = imported_trial(tmp_path / "log.txt", "theirs", "coco")
    assert trial.metrics == {
        "bbox": BOX,
        "segm": {"AP": 56.0, "AP50": pytest.approx(81.4), "AP75": pytest.approx(62.6)},
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json at all",
        '{"iteration": 5, "total_loss": 1.0}',
        '{"bbox/AP": 57.0}',
        "copypaste: Task: bbox\ncopypaste: AP,AP50,AP75",
    ],
)
def test_a_file_without_a_complete_evaluation_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(UserError, match="holds no evaluation"):
        imported_trial(tmp_path / "metrics.json", "theirs", "coco")


def test_a_missing_file_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        imported_trial(tmp_path / "nowhere.json", "theirs", "coco")
