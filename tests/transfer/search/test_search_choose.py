"""The choice among points: best, ties, what diverged or is missing, and what is refused."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ssl_transfer.console import call_main
from ssl_transfer.errors import EXIT_FAILURE, EXIT_OK, EXIT_USAGE, UserError
from ssl_transfer.formats.results import LrSearchRecord
from tools.lr_search import main
from transfer.search.choice import choose, read_choice

RESULT: dict[str, Any] = {
    "format": "transfer-result/1",
    "status": "done",
    "role": "lr_search",
    "select_on": "test",
    "task": "voc07",
    "seed": 1000,
    "toy": False,
    "metrics": {"bbox": {"AP": 50.0, "AP50": 75.0, "AP75": 52.0, "per_class": {}}},
    "divergence": None,
    "settings": {"total_batch": 16, "lr": 0.02, "iterations": 9000, "test_split": "voc_2007_test"},
    "weights": {"name": "simsiam", "path": "w.pkl", "sha256": "ab" * 32, "manifest": None},
}


def write(folder: Path, lr: float, value: float | None, **changes: Any) -> Path:
    """A point's folder; `value` None: the point diverged."""
    content = copy.deepcopy(RESULT)
    content["settings"]["lr"] = lr
    if value is None:
        content |= {"status": "diverged", "metrics": None}
    else:
        content["metrics"]["bbox"]["AP"] = value
    for key, new in changes.items():
        node, *rest = key.split("__")
        if rest:
            content[node][rest[0]] = new
        else:
            content[node] = new
    folder = folder / f"{lr:g}"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(content))
    return folder


def test_the_highest_value_wins_and_a_tie_goes_to_the_smaller_rate(tmp_path: Path) -> None:
    values = {0.1: 51.0, 0.02: 51.0, 0.01: 49.0, 0.2: 50.0}
    folders = [write(tmp_path, lr, value) for lr, value in values.items()]
    content = choose(folders, row="simsiam", task="voc07").record.as_dict()
    assert content["chosen"] == 0.02
    assert [(point["lr"], point["value"]) for point in content["points"]] == sorted(values.items())
    assert (content["split"], content["seed"], content["metric"]) == ("voc_2007_test", 1000, "bbox/AP")


def test_the_record_lists_diverged_and_missing_candidates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [write(tmp_path, 0.02, 50.0), write(tmp_path, 0.05, 49.0), write(tmp_path, 0.5, None)]
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "trial.json").write_text(json.dumps({"settings": {"SOLVER.BASE_LR": 0.1}}))
    words = ["choose", *map(str, [*folders, begun, tmp_path / "nobody"]), "--row", "simsiam", "--task", "voc07"]
    words += ["--output", str(tmp_path / "lr_search.json"), "--grid", "0.01", "0.02", "0.05", "0.1", "0.5"]
    assert call_main(main, words) == EXIT_OK
    out = capsys.readouterr().out
    assert "note: lr 0.01 is missing" in out and f"lr 0.1 is missing ({begun} has no result)" in out
    assert "note: lr 0.5 diverged" in out and "chosen on voc_2007_test: lr 0.02" in out
    content = json.loads((tmp_path / "lr_search.json").read_text())
    assert [(p["lr"], p["value"], p["status"]) for p in content["points"]] == [
        (0.01, None, "missing"),
        (0.02, 50.0, "done"),
        (0.05, 49.0, "done"),
        (0.1, None, "missing"),
        (0.5, None, "diverged"),
    ]
    # What the report makes of it.
    search = LrSearchRecord.read(tmp_path / "lr_search.json")
    assert (search.row, search.task, search.split, search.chosen) == ("simsiam", "voc07", "voc_2007_test", 0.02)


@pytest.mark.parametrize(("best", "side"), [(0.01, "smallest"), (0.1, "largest")])
def test_a_choice_at_the_edge_of_the_grid_is_a_warning(tmp_path: Path, best: float, side: str) -> None:
    folders = [write(tmp_path, lr, 50.0 + (lr == best)) for lr in (0.01, 0.02, 0.1)]
    assert any(f"{side} of the grid" in line for line in choose(folders, row="r", task="t").warnings)


def test_nothing_to_choose_is_recorded_and_exit_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [write(tmp_path, lr, None) for lr in (0.1, 0.2)]
    file = tmp_path / "lr_search.json"
    words = ["choose", *map(str, folders), "--row", "r", "--task", "t", "--output", str(file)]
    assert call_main(main, words) == EXIT_FAILURE
    assert "nothing chosen" in capsys.readouterr().out
    assert json.loads(file.read_text())["chosen"] is None
    with pytest.raises(UserError, match="nothing was chosen"):
        read_choice(file)


def test_a_value_that_is_no_number_is_not_chosen(tmp_path: Path) -> None:
    folders = [write(tmp_path, 0.01, 0.0), write(tmp_path, 0.02, 5.0, metrics={"bbox": {"AP": None}})]
    choice = choose(folders, row="r", task="t")
    assert choice.record.chosen == 0.01 and "lr 0.02 has no value" in choice.warnings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1001}, "seed is 1001 and 1000"),
        ({"weights__sha256": "cd" * 32}, "weights.sha256"),
        ({"settings__iterations": 100}, "settings.iterations is 100 and 9000"),
        ({"select_on": "heldout"}, "select_on is heldout and test"),
        ({"role": "trial"}, "--role lr_search"),
        ({"format": "x"}, "tools/transfer.py"),
        ({"weights": None}, "result.json: weights"),
        ({"settings__lr": 0.02}, "at lr 0.02"),
    ],
)
def test_what_is_no_candidate_of_the_search_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folders = [write(tmp_path, 0.02, 50.0), write(tmp_path, 0.1, 51.0, **changes)]
    with pytest.raises(UserError, match=message):
        choose(folders, row="r", task="t")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--metric", "bbox/ap"], "did you mean bbox/AP"),
        (["--metric", "segm/AP"], "holds no metric 'segm/AP'"),
        (["--grid", "0.1"], "its lr 0.02 is not in --grid"),
        (["--grid", "0.02", "-1"], "a learning rate is a positive number"),
        (["--output", "other.json"], "is no record of a search"),
        (["--output", "theirs.json"], "records the search of row 'moco', not of 'r'"),
    ],
)
def test_wrong_use_is_one_line_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "theirs.json").write_text('{"format": "lr-search/1", "row": "moco", "task": "t"}')
    folder = write(tmp_path, 0.02, 50.0)
    before = {file: file.read_bytes() for file in tmp_path.glob("*.json")}
    words = ["choose", str(folder), "--row", "r", "--task", "t", "--output", "out.json", *more]
    assert call_main(main, words) == EXIT_USAGE
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert {file: file.read_bytes() for file in tmp_path.glob("*.json")} == before


def test_an_empty_folder_needs_a_grid_to_be_a_missing_candidate(tmp_path: Path) -> None:
    folders = [write(tmp_path, 0.02, 50.0), tmp_path / "nobody"]
    with pytest.raises(UserError, match=r"nobody holds neither result\.json nor trial\.json"):
        choose(folders, row="r", task="t")
    assert choose(folders, row="r", task="t", grid=[0.02, 0.1]).record.points[1].status == "missing"


def test_a_search_without_results_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trial.json").write_text(json.dumps({"settings": {"SOLVER.BASE_LR": 0.1}}))
    with pytest.raises(UserError, match="no candidate has ended"):
        choose([tmp_path], row="r", task="t")


def test_choosing_again_replaces_the_record_of_the_same_search(tmp_path: Path) -> None:
    words = ["--row", "r", "--task", "t", "--output", str(tmp_path / "out.json")]
    first = write(tmp_path, 0.02, 50.0)
    assert call_main(main, ["choose", str(first), *words]) == EXIT_OK
    assert read_choice(tmp_path / "out.json").lr == 0.02
    second = write(tmp_path, 0.1, 51.0)
    assert call_main(main, ["choose", str(first), str(second), *words]) == EXIT_OK
    assert read_choice(tmp_path / "out.json").lr == 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "voc0712"}, "was searched for the task voc07, this trial has voc0712"),
        ({"weights_sha256": None}, "this trial has scratch"),
        ({"total_batch": 8}, "a total batch of 16, this trial has 8"),
        ({"seed": 1000}, "the search used the seed 1000"),
    ],
)
def test_a_record_is_refused_for_another_kind_of_trial(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "out.json"
    words = ["--row", "r", "--task", "t", "--output", str(file)]
    assert call_main(main, ["choose", str(write(tmp_path, 0.02, 50.0)), *words]) == EXIT_OK
    mine: dict[str, Any] = {"task": "voc07", "seed": 1, "total_batch": 16, "weights_sha256": "ab" * 32, "toy": False}
    read_choice(file).check_trial(**mine)
    with pytest.raises(UserError, match=message):
        read_choice(file).check_trial(**{**mine, **change})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "is not of format lr-search/1"),
        ('{"format": "lr-search/1"}', "f.json: row: is missing"),
    ],
)
def test_a_broken_record_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "f.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_choice(tmp_path / "f.json")


def test_choosing_imports_neither_torch_nor_detectron2(root: Path) -> None:
    code = "import sys, transfer.search.candidates, transfer.search.choice, tools.lr_search\n"
    code += "sys.exit(bool({'torch', 'detectron2', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
