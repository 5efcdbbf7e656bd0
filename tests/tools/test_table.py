"""The command line: formats, one-line errors, speed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ssl_transfer.console import call_main
from ssl_transfer.environment import ROOT
from tests.transfer.report.made_results import Run, pretrain_lines, pretrain_result, put, result, whole
from tools.table import main
from transfer.doctor.check import task_of
from transfer.tasks.task import read_split


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(tmp_path_factory.mktemp("whole"))


def test_markdown_on_the_screen_and_what_was_skipped_on_stderr(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call_main(main, [str(run)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("## Table 5")
    assert err.startswith("skipped ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "start"),
    [("t.md", "## "), ("t.csv", "layout,"), ("t.tex", "% "), ("t.json", "{"), ("t.html", "<!doctype html>")],
)
def test_the_file_name_selects_the_format(name: str, start: str, run: Path, tmp_path: Path) -> None:
    assert call_main(main, [str(run), "--output", str(tmp_path / "new" / name)]) == 0
    assert (tmp_path / "new" / name).read_text().startswith(start)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


def test_the_format_given_wins_over_the_name(run: Path, tmp_path: Path) -> None:
    assert call_main(main, [str(run), "--format", "json", "--output", str(tmp_path / "table.txt")]) == 0
    json.loads((tmp_path / "table.txt").read_text())


@pytest.mark.parametrize("form", ["csv", "latex"])
def test_csv_and_latex_report_on_stderr_why_there_is_no_table(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Run(tmp_path, [("simsiam", "SimSiam", None)], {})
    made.pretrain("simsiam", pretrain_result(), pretrain_lines())
    assert call_main(main, [str(made.save()), "--format", form]) == 0
    out, err = capsys.readouterr()
    assert "SimSiam" not in out
    assert err.startswith("Pre-training alone, so no table: SimSiam (done)") and err.count("\n") == 1


def test_an_imported_trial(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.json").write_text('{"bbox/AP": 57.2, "bbox/AP50": 82.0, "bbox/AP75": 63.0}\n')
    words = ["--import", "theirs", "voc0712", str(tmp_path / "metrics.json"), "--expect", "theirs=moco_v2"]
    assert call_main(main, [*words]) == 0
    out = capsys.readouterr().out
    assert "57.2 (57.0, +0.2)" in out
    assert "incomplete, imported [a,b]" in out
    assert f"- b: imported: made elsewhere, settings unknown: {tmp_path / 'metrics.json'}" in out


@pytest.mark.parametrize("task", ["voc07", "coco"])
def test_detections_made_elsewhere_are_measured(
    toy_detection: Path, tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The annotated objects themselves, as a detector's answer, are a perfect one."""
    settings = task_of(ROOT / f"configs/transfer/{task}.yaml", toy_detection)
    dataset = read_split(settings.splits[-1], settings.classes, check_count=False)
    entries = []
    for record in dataset.records:
        for one in record.annotations:
            x, y, *corner = one.box
            box = [x, y, *corner] if task == "coco" else [x - 1, y - 1, corner[0] - x + 1, corner[1] - y + 1]
            number = dataset.category_ids[one.label] if task == "coco" else one.label + 1
            entries.append({"image_id": record.image_id, "category_id": number, "bbox": box, "score": 0.9})
    file = tmp_path / "coco_instances_results.json"
    file.write_text(json.dumps(entries))
    for words in (["--data", str(toy_detection)], ["--data", str(toy_detection.parent)]):
        assert call_main(main, ["--import", "theirs", task, str(file), "--allow-toy", "--format", "long", *words]) == 0
        values = [line for line in capsys.readouterr().out.splitlines() if "theirs" in line and "AP75" in line]
        assert values and all("100.0" in line for line in values)
    assert call_main(main, ["--import", "theirs", task, str(file), "--data", str(tmp_path)]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_published_rows_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert call_main(main, ["--published", "rows", "--layout", "table4"]) == 0
    assert "| SimSiam (published)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a run folder"),
        (["{empty}"], "no result below"),
        (["{empty}/nowhere"], "does not exist"),
        (["{run}", "--output", "table.xyz"], "cannot tell the format"),
        (["{run}", "--output", "/proc/none/table.md"], "cannot write"),
        (["{run}", "--against", "scrach"], "did you mean scratch"),
        (["{run}", "--sort", "voc07.AP"], "did you mean"),
        (["{run}", "--expect", "simsiam"], "must be ROW=KEY"),
        (["{run}", "--expect", "simsiam=byoll"], "did you mean byol"),
        (["{run}", "--import", "a", "coco", "{empty}/nothing.json"], "cannot be read"),
        (["{run}", "--format", "pdf"], "invalid choice"),
        (["{broken}"], "1 file(s) skipped"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(
    words: list[str], said: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"run": str(run), "empty": str(tmp_path / "empty"), "broken": str(tmp_path / "broken")}
    (tmp_path / "empty").mkdir()
    put(tmp_path / "broken", "{")
    assert call_main(main, [word.format(**places) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = [line for line in err.splitlines() if not line.startswith("skipped ")]
    assert said in line


def test_toys_beside_real_results_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, result("toy", "voc07", 1, [50.0, 20.0, 10.0], toy=True))
    assert call_main(main, [str(run), str(tmp_path), "--output", str(tmp_path / "t.md")]) == 2
    assert "--allow-toy" in capsys.readouterr().err
    assert not (tmp_path / "t.md").exists()
    assert call_main(main, [str(run), str(tmp_path), "--allow-toy"]) == 0


def test_plots_as_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2):
        put(tmp_path / str(seed), result("mine", "voc07", seed, [50.0 + seed, 20.0, 10.0]))
    assert call_main(main, [str(tmp_path), "--plots", str(tmp_path / "plots")]) == 0
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert {"trials-table5-voc07-bbox-ap.png", "trials-table5-voc07-bbox-ap.svg"} <= names
    assert f"wrote {len(names)} plots" in capsys.readouterr().err


def test_a_table_imports_neither_torch_nor_detectron2(root: Path, run: Path) -> None:
    code = f"import sys; from tools.table import main; main([{str(run)!r}, '--format', 'html']); "
    code += "print({'torch', 'detectron2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")


def test_the_work_for_a_thousand_results_is_proportional_to_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count_lines: Callable[[Callable[[], object]], int]
) -> None:
    """Each result carries a whole manifest."""
    tensors = {f"res4.{i}.conv1.weight": {"shape": [256, 64, 1, 1], "sha256": "0" * 64} for i in range(265)}

    def lines(rows: int) -> int:
        for row in range(rows):
            for task, trials in (("voc07", 5), ("voc0712", 5), ("voc0712_trainval", 5), ("coco", 5)):
                for seed in range(trials):
                    segm = [50.0, 30.0, 31.0] if task == "coco" else None
                    made = result(f"row{row}", task, seed, [70 + seed / 10, 40.0, 45.0], segm)
                    made["weights"]["manifest"]["tensors"] = tensors
                    put(tmp_path / str(rows) / f"{row}-{task}-{seed}", made)
        words = [str(tmp_path / str(rows)), "--against", "row0"]
        ran = count_lines(lambda: call_main(main, words))
        assert capsys.readouterr().out.count("| row") >= rows
        return ran

    lines(1)  # imports
    assert lines(50) < 15 * lines(5), "quadratic work runs a hundred times as many"
