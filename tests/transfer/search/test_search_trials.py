"""The search as its user runs it: points through tools/transfer.py, the choice, a trial at the chosen rate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssl_transfer.console import call_main
from ssl_transfer.errors import EXIT_OK, EXIT_USAGE
from tools.lr_search import main as lr_search
from tools.table import main as table
from tools.transfer import main as transfer
from transfer.report.collect import collect

Words = Callable[..., list[str]]


@pytest.fixture(scope="session")
def words(root: Path, narrow_overlay: Path, toy_detection: Path) -> Words:
    """The command line of a small trial."""

    def make(output: Path, *more: str, task: str = "voc07", seed: int = 1) -> list[str]:
        found = ["--config-file", str(root / f"configs/transfer/{task}.yaml"), "--overlay", str(narrow_overlay)]
        found += ["--weights", "scratch", "--seed", str(seed), "--output", str(output), "--resume"]
        return [*found, *more, "TRANSFER.DATA_ROOT", str(toy_detection)]

    return make


def result(folder: Path) -> Any:
    return json.loads((folder / "result.json").read_text())


POINT = ("--role", "lr_search", "--select-on")


@pytest.fixture(scope="module")
def searched(words: Words, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two points on the held-out part, one that diverges, and the choice."""
    run = tmp_path_factory.mktemp("run")
    for lr in ("0.001", "0.02", "1e30"):
        asked = words(run / lr, *POINT, "heldout", "SOLVER.BASE_LR", lr, "SOLVER.WARMUP_ITERS", "0", seed=9)
        assert call_main(transfer, asked) == EXIT_OK
    folders = [str(run / lr) for lr in ("0.001", "0.02", "1e30")]
    file = str(run / "lr_search.json")
    assert (
        call_main(lr_search, ["choose", *folders, "--row", "scratch", "--task", "voc07", "--output", file]) == EXIT_OK
    )
    return run


def test_a_candidate_s_result_names_role_and_split(searched: Path) -> None:
    found = result(searched / "0.02")
    assert (found["role"], found["select_on"], found["seed"]) == ("lr_search", "heldout", 9)
    assert found["heldout"]["split"] == "voc_2007_trainval" and found["heldout"]["images"] == 3
    assert found["settings"]["test_split"] == "voc_2007_trainval:heldout"
    assert found["settings"]["train_splits"] == ["voc_2007_trainval"]
    reason = "measured on voc_2007_trainval:heldout, not on voc_2007_test"
    assert reason in found["comparable"]["reasons"]
    assert len((searched / "0.02/heldout.txt").read_text().split()) == 3


def test_the_record_lists_candidates_and_choice(searched: Path) -> None:
    record = json.loads((searched / "lr_search.json").read_text())
    assert [(point["lr"], point["status"]) for point in record["points"]] == [
        (0.001, "done"),
        (0.02, "done"),
        (1e30, "diverged"),
    ]
    values = {point["lr"]: point["value"] for point in record["points"][:2]}
    assert values == {lr: result(searched / f"{lr:g}")["metrics"]["bbox"]["AP"] for lr in (0.001, 0.02)}
    assert record["chosen"] == max(sorted(values), key=lambda lr: values[lr])
    assert (record["split"], record["select_on"]) == ("voc_2007_trainval:heldout", "heldout")


def test_a_candidate_is_in_no_cell_and_the_choice_is_collected(
    words: Words, searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = words(searched / "trial", "--lr-from", str(searched / "lr_search.json"))
    asked = [*asked, "SOLVER.WARMUP_ITERS", "0"]
    assert call_main(transfer, asked) == EXIT_OK
    found, record = result(searched / "trial"), json.loads((searched / "lr_search.json").read_text())
    assert found["settings"]["lr"] == record["chosen"] and "role" not in found
    chosen = found["lr_search"]
    assert chosen["chosen"] == record["chosen"] and len(chosen["sha256"]) == 64
    assert (chosen["row"], chosen["seed"], chosen["split"]) == ("scratch", 9, "voc_2007_trainval:heldout")
    collected = collect([searched])
    assert [trial.folder.name for trial in collected.trials] == ["trial"]
    assert [search.record.chosen for search in collected.searches] == [record["chosen"]]
    assert call_main(table, [str(searched)]) == EXIT_OK


@pytest.mark.parametrize("evaluator", ["exact", "detectron2"])
def test_both_voc_evaluators_agree_on_the_held_out_part(words: Words, searched: Path, evaluator: str) -> None:
    more = (*POINT, "heldout", "--eval-only", "SOLVER.BASE_LR", "0.02", "SOLVER.WARMUP_ITERS", "0")
    asked = words(searched / "0.02", *more, "TRANSFER.EVALUATOR", evaluator, seed=9)
    assert call_main(transfer, asked) == EXIT_OK
    measured = json.loads((searched / "0.02/evaluation.json").read_text())["metrics"]["bbox"]
    expected = result(searched / "0.02")["metrics"]["bbox"]
    assert {key: measured[key] for key in ("AP", "AP50", "AP75")} == pytest.approx(
        {key: expected[key] for key in ("AP", "AP50", "AP75")}, abs=1e-9
    )


def test_coco_is_searched_on_a_part_of_train2017(words: Words, tmp_path: Path) -> None:
    asked = words(tmp_path / "point", *POINT, "heldout", task="coco", seed=9)
    assert call_main(transfer, [*asked, "TRANSFER.HELDOUT.FRACTION", "0.5"]) == EXIT_OK
    found = result(tmp_path / "point")
    assert found["heldout"]["images"] == 6 and set(found["metrics"]) == {"bbox", "segm"}
    assert found["settings"]["test_split"] == "coco_2017_train:heldout"
    content = json.loads((tmp_path / "point/heldout.json").read_text())
    assert len(content["images"]) == 6


def test_a_candidate_on_the_test_split_as_in_the_paper(words: Words, tmp_path: Path) -> None:
    assert call_main(transfer, words(tmp_path / "point", *POINT, "test", seed=9)) == EXIT_OK
    found = result(tmp_path / "point")
    assert (found["role"], found["select_on"]) == ("lr_search", "test") and "heldout" not in found
    assert found["settings"]["test_split"] == "voc_2007_test"
    assert not list((tmp_path / "point").glob("heldout*"))


def test_a_trial_does_not_use_a_candidate_s_folder(
    words: Words, searched: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("SOLVER.BASE_LR", "0.02", "SOLVER.WARMUP_ITERS", "0")
    assert call_main(transfer, words(searched / "0.02", *more, seed=9)) == EXIT_USAGE
    assert "holds another trial: TRANSFER.ROLE is 'lr_search' there and 'trial' here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--role", "lr_search"], "--select-on is missing"),
        (["--select-on", "test"], "add --role lr_search"),
        (["TRANSFER.ROLE", "lr_search"], "use --role on the command line instead"),
        (["TRANSFER.SELECT_ON", "test"], "use --select-on on the command line instead"),
        ([*POINT, "heldout", "TRANSFER.HELDOUT.FRACTION", "1.0"], "must lie between 0 and 1"),
        ([*POINT, "test", "--lr-from", "{record}"], "--lr-from"),
        (["--lr-from", "{record}", "SOLVER.BASE_LR", "0.1"], "both give the lr"),
        (["--lr-from", "{record}", "--seed", "9"], "the search used the seed 9"),
        (["--lr-from", "{record}", "SOLVER.IMS_PER_BATCH", "4"], "a total batch of 2, this trial has 4"),
        (["--lr-from", "{record}", "TRANSFER.TASK", "other"], "the task voc07, this trial has other"),
        (["--lr-from", "{record}", "TRANSFER.TOY", "False"], "was searched with a toy config"),
        (["--lr-from", "nowhere.json"], "nowhere.json does not exist"),
    ],
)
def test_a_contradiction_is_one_line_and_exit_2(
    words: Words,
    searched: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    said = [word.format(record=searched / "lr_search.json") for word in more]
    assert call_main(transfer, words(tmp_path / "trial", *said)) == EXIT_USAGE
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "trial").exists()


@pytest.mark.parametrize("task", ["voc07", "coco"])
def test_a_perfect_detector_has_an_ap_of_100_on_the_held_out_part(
    root: Path, narrow_overlay: Path, toy_detection: Path, tmp_path: Path, task: str
) -> None:
    """By Detectron2's own evaluators, which read the files that were written for them."""
    import torch
    from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator
    from detectron2.structures import Boxes, BoxMode, Instances

    from transfer.engine.detection_data import register_metadata, to_detectron2
    from transfer.engine.prepare import TrialRequest, prepare

    request = TrialRequest(
        config_file=root / f"configs/transfer/{task}.yaml",
        overlay=narrow_overlay,
        overrides=("TRANSFER.DATA_ROOT", str(toy_detection)),
        weights="scratch",
        seed=9,
        output=tmp_path / "point",
        role="lr_search",
        select_on="heldout",
    )
    test = prepare(request)[1].test
    name = register_metadata(test)
    evaluator = (
        PascalVOCDetectionEvaluator(name)
        if task == "voc07"
        else COCOEvaluator(name, tasks=("bbox",), use_fast_impl=False, allow_cached_coco=False)
    )
    evaluator.reset()
    for record in test.records:
        image = to_detectron2(record, test.split.layout)
        things = [entry for entry in image["annotations"] if not entry.get("iscrowd")]
        found = Instances((record.height, record.width))
        boxes = [BoxMode.convert(entry["bbox"], entry["bbox_mode"], BoxMode.XYXY_ABS) for entry in things]
        found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        found.scores = torch.ones(len(things))
        found.pred_classes = torch.tensor([entry["category_id"] for entry in things], dtype=torch.int64)
        evaluator.process([image], [{"instances": found}])
    values = evaluator.evaluate()["bbox"]
    present = {
        thing.label for record in test.records for thing in record.annotations if not (thing.difficult or thing.crowd)
    }
    # VOC counts a class that does not occur as 0, COCO not at all.
    expected = 100 if task == "coco" else 100 * len(present) / len(test.classes)
    assert present and values["AP"] == pytest.approx(expected, abs=1e-6)
