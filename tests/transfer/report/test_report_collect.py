"""What is found in folders, what is skipped and named, and how several runs come together."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ssl_transfer.errors import UserError
from tests.transfer.report.made_results import JOB_STATE, Run, diverged, pretrain_lines, pretrain_result, put, result
from transfer.report.collect import collect

GOOD = result("simsiam", "voc07", 1, [75.0, 47.0, 50.0])


def changed(**changes: object) -> dict:
    return result("simsiam", "voc07", 1, [75.0, 47.0, 50.0], **changes)


def without(key: str) -> dict:
    return {name: value for name, value in GOOD.items() if name != key}


BROKEN = {
    "cut short": (json.dumps(GOOD)[:200], "not JSON"),
    "empty": ("", "not JSON"),
    "binary": ("\x00\x01\x02", "not JSON"),
    "a list": ("[1, 2]", "holds a list"),
    "no format": (without("format"), "has no 'format'"),
    "another program's": ({"format": "coco-eval/3"}, "is not a result of this project"),
    "another version": ({**GOOD, "format": "transfer-result/2"}, "another version"),
    "no metrics": (without("metrics"), "metrics: is missing"),
    "no branch": (changed(metrics={}), "metrics: holds neither bbox nor segm"),
    "no AP75": (changed(metrics={"bbox": {"AP": 1.0, "AP50": 2.0}}), r"metrics\.bbox\.AP75: is missing"),
    "NaN": (json.dumps(changed(metrics__bbox__AP=float("nan"))), r"metrics\.bbox\.AP: "),
    "a word": (changed(metrics__bbox__AP="47"), r"metrics\.bbox\.AP: .*'47'"),
    "true": (changed(metrics__bbox__AP=True), r"metrics\.bbox\.AP: .*True"),
    "above 100": (changed(metrics__bbox__AP=470.0), r"metrics\.bbox\.AP: .*470"),
    "no task": (without("task"), "task: is missing"),
    "a numeric task": ({**GOOD, "task": 7}, "task: .*7"),
    "unknown status": (changed(status="running"), "status: .*'running'"),
    "no toy flag": (without("toy"), "toy: is missing"),
    "no weights": (without("weights"), "weights: is missing"),
    "nameless weights": (changed(weights__name=None), r"weights\.name: is missing"),
    "settings a list": (changed(settings=[]), "settings: "),
    "seed a word": ({**GOOD, "seed": "one"}, "seed: .*'one'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_malformed_or_foreign_result_is_reported_and_the_others_count(name: str, tmp_path: Path) -> None:
    content, reason = BROKEN[name]
    put(tmp_path / "good", GOOD)
    bad = put(tmp_path / "bad", content)
    found = collect([tmp_path])
    assert [trial.seed for trial in found.trials] == [1]
    assert [skipped.path for skipped in found.skipped] == [bad]
    assert re.search(reason, found.skipped[0].reason), found.skipped[0].reason


def test_a_loose_folder_gives_rows_by_weights_and_pretraining_runs(tmp_path: Path) -> None:
    put(tmp_path / "a", GOOD)
    put(tmp_path / "b" / "deep", result("scratch", "coco", 1, [44.0, 26.0, 27.0], [46.0, 29.0, 30.0]))
    put(tmp_path / "p", pretrain_result())
    found = collect([tmp_path])
    assert sorted((t.row, t.task) for t in found.trials) == [("scratch", "coco"), ("simsiam", "voc07")]
    assert found.pretraining[0].name == "simsiam"
    assert found.requested == {}


def test_loose_results_have_a_row_for_each_weights_file(tmp_path: Path) -> None:
    for name, path, sha in (
        ("a", "base.pkl", "1"),
        ("b", "optimal.pkl", "2"),
        ("c", "x/m.pkl", "3"),
        ("d", "y/m.pkl", "4"),
    ):
        put(tmp_path / name, changed(weights__path=path, weights__sha256=sha * 64))
    assert list(collect([tmp_path]).rows) == ["base", "optimal", "m@33333333", "m@44444444"]


def test_a_graph_decides_what_is_current(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", [("mine", "My weights", "simsiam_base")], {"voc07": 3})
    run.finetune("mine", "voc07", 1, result("simsiam", "voc07", 1, [75.0, 47.0, 50.0]))
    run.finetune("mine", "voc07", 2, None, status="failed", error="OSError: disk\nfull")
    run.finetune("mine", "voc07", 3, None)
    put(run.save() / "jobs" / "finetune.mine.voc07.s1-99999999", result("simsiam", "voc07", 1, [1.0, 1.0, 1.0]))
    found = collect([tmp_path])
    assert [(t.row, t.metrics["bbox"]["AP"]) for t in found.trials] == [("mine", 47.0)]
    assert found.rows["mine"].label == "My weights"
    assert found.requested == {("mine", "voc07"): 3}
    assert found.waiting[("mine", "voc07")] == [
        "finetune.mine.voc07.s2: failed (OSError: disk full)",
        "finetune.mine.voc07.s3: not started",
    ]
    assert found.superseded == 1


def test_a_malformed_graph_is_reported_and_its_folder_searched(tmp_path: Path) -> None:
    put(tmp_path / "jobs" / "x", GOOD)
    for text in ("{", '{"format": "graph/9"}', '{"format": "graph/1", "rows": [], "tasks": [], "jobs": [3]}'):
        (tmp_path / "graph.json").write_text(text)
        found = collect([tmp_path])
        assert [skipped.path.name for skipped in found.skipped] == ["graph.json"]
        assert len(found.trials) == 1


def test_overlapping_folders_count_a_result_once(tmp_path: Path) -> None:
    put(tmp_path / "a", GOOD)
    found = collect([tmp_path, tmp_path / "a"])
    assert len(found.trials) == 1


def test_rows_of_one_name_with_the_same_weights_are_one_row(tmp_path: Path) -> None:
    put(tmp_path / "first", GOOD)
    put(tmp_path / "second", {**GOOD, "seed": 2})
    found = collect([tmp_path / "first", tmp_path / "second"])
    assert list(found.rows) == ["simsiam"]


def test_rows_of_one_name_with_other_weights_become_separate_rows(tmp_path: Path) -> None:
    for name, sha in (("first", "1" * 64), ("second", "2" * 64)):
        run = Run(tmp_path / name, [("simsiam", "SimSiam", "simsiam_base")], {"voc07": 1})
        run.finetune("simsiam", "voc07", 1, changed(weights__sha256=sha))
        run.save()
    found = collect([tmp_path / "first", tmp_path / "second"])
    assert {key: info.label for key, info in found.rows.items()} == {
        "simsiam": "SimSiam",
        "simsiam@second": "SimSiam (second)",
    }
    assert [trial.row for trial in found.trials] == ["simsiam", "simsiam@second"]
    assert found.requested == {("simsiam", "voc07"): 1, ("simsiam@second", "voc07"): 1}


def test_runs_below_one_folder_have_separate_rows_too(tmp_path: Path) -> None:
    for name, sha in (("a", "1" * 64), ("b", "2" * 64)):
        run = Run(tmp_path / name, [("simsiam", "SimSiam", None)], {"voc07": 1})
        run.finetune("simsiam", "voc07", 1, changed(weights__sha256=sha))
        run.save()
    assert list(collect([tmp_path]).rows) == ["simsiam", "simsiam@b"]


def test_an_unfinished_pretraining_run_has_its_state(tmp_path: Path) -> None:
    run = Run(tmp_path, [("simsiam", "SimSiam", None)], {})
    folder = run.pretrain("simsiam", None, pretrain_lines(5))
    (folder / "job.json").write_text(json.dumps({**JOB_STATE, "status": "running"}))
    found = collect([run.save()])
    assert [(p.name, p.status, p.result) for p in found.pretraining] == [("SimSiam", "running", None)]


def test_hours_are_those_of_all_attempts(tmp_path: Path) -> None:
    """The result knows only of the last one."""
    run = Run(tmp_path, [("scratch", "scratch", None)], {"voc07": 3})
    at = [f"2026-01-01T{hour:02d}:00:00+00:00" for hour in range(6)]
    earlier = [
        {"started": at[0], "ended": at[1], "status": "requeued", "gpus": 8},
        {"started": at[2], "ended": at[4], "status": "failed", "gpus": 4},
    ]
    state = {"status": "done", "started": at[4], "ended": at[5]}
    run.finetune("scratch", "voc07", 1, GOOD, **state, attempts=3, gpus=8, earlier=earlier)
    run.finetune("scratch", "voc07", 2, {**GOOD, "seed": 2}, **state, gpus=8)
    run.finetune("scratch", "voc07", 3, {**GOOD, "seed": 3})
    resumed, once, outside = collect([run.save()]).trials
    assert (resumed.hours, resumed.gpu_hours, resumed.provenance()["attempts"]) == (4.0, 8 * 1 + 4 * 2 + 8 * 1, 3)
    assert (once.hours, once.gpu_hours) == (outside.hours, outside.gpu_hours)
    assert [trial.provenance()["attempts"] for trial in (once, outside)] == [None, None]


def test_an_lr_search_trial_is_in_no_cell_and_its_record_is_read(tmp_path: Path) -> None:
    put(tmp_path / "search", {**GOOD, "role": "lr_search"})
    record = {"format": "lr-search/1", "row": "simsiam", "task": "voc07", "seed": 0, "split": "voc_2007_test"}
    record |= {"metric": "bbox/AP", "points": [{"lr": 0.01, "value": 45.0}, {"lr": 0.1, "value": None}], "chosen": 0.01}
    (tmp_path / "lr_search.json").write_text(json.dumps(record))
    found = collect([tmp_path])
    assert found.trials == []
    assert [(s.record.row, s.record.chosen, len(s.record.points)) for s in found.searches] == [("simsiam", 0.01, 2)]
    (tmp_path / "lr_search.json").write_text(json.dumps({**record, "points": [{"value": 1}]}))
    assert "points.0.lr" in collect([tmp_path]).skipped[0].reason


def test_a_diverged_trial_needs_no_metrics(tmp_path: Path) -> None:
    put(tmp_path, diverged("simsiam", "voc07", 1))
    assert [trial.status for trial in collect([tmp_path]).trials] == ["diverged"]


def test_a_linear_evaluation_is_a_trial_of_its_epochs_and_a_knn_is_none(tmp_path: Path) -> None:
    made = {"format": "evaluation-result/1", "status": "done", "kind": "linear", "seed": 0, "toy": False}
    made |= {
        "metrics": {"top1": 68.1},
        "settings": {},
        "weights": {"name": "b", "origin": {"recipe": "r", "epochs": 100}},
    }
    put(tmp_path / "linear", made)
    put(tmp_path / "knn", {**made, "kind": "knn"})
    found = collect([tmp_path])
    assert [(t.row, t.task, dict(t.metrics["linear"])) for t in found.trials] == [("r", "linear_100ep", {"top1": 68.1})]
    assert not found.skipped


def test_a_missing_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="is not a folder"):
        collect([put(tmp_path, GOOD)])
