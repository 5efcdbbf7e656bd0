"""Every text format of one generated run folder, against values computed by hand."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from tests.transfer.report.made_results import FIVE, Run, pretrain_lines, pretrain_result, put, result, whole
from transfer.report.collect import collect
from transfer.report.render import csv as as_csv
from transfer.report.render import json as as_json
from transfer.report.render import latex, markdown
from transfer.report.tables import Options, build_report


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(tmp_path_factory.mktemp("whole"))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_markdown(run: Path) -> None:
    text = markdown.render(build_report(collect([run]), Options()))
    lines = [cells(line) for line in text.splitlines() if line.startswith("|")]
    head, scratch, supervised, simsiam = lines[0], lines[2], lines[3], lines[4]
    assert head[:5] == ["pre-train", "VOC 07 detection: AP50", "AP", "AP75", "n"]
    assert scratch[:5] == [
        "scratch",
        "36.0 ± 0.2 (35.9, +0.1)",
        "17.0 ± 0.2 (16.8, +0.2)",
        "13.0 ± 0.2 (13.0, +0.0)",
        "5",
    ]
    assert scratch[5:9] == [
        "62.0 ± 1.0 (60.2, +1.8)",
        "35.0 ± 1.0 (33.8, +1.2)",
        "33.0 ± 0.0 (33.1, -0.1)",
        "3/5 incomplete [a]",
    ]
    assert supervised[8] == "4/5 diverged [b]"
    assert simsiam[:5] == [
        "SimSiam, base",
        "**75.6** ± 0.2 (75.5, +0.1)",
        "**47.1** ± 0.2 (47.0, +0.1)",
        "**50.0** ± 0.2 (50.2, -0.2)",
        "5",
    ]
    assert simsiam[5:9] == ["mixed (82.0)", "mixed (56.4)", "mixed (62.8)", "5 mixed [c]"]
    assert simsiam[9] == "57.0 (57.5)", "no difference where it does not compare"
    assert simsiam[12] == "1 not comparable, unlike the column [d,e]"
    assert "- a: incomplete: 3 of 5 trials; finetune.scratch.voc0712.s4: failed (OSError: disk full); finetune" in text
    assert "- c: mixed: not averaged, the trials differ in lr: 0.02 (3), 0.1 (2)" in text
    assert "voc0712: voc_2007_trainval + voc_2012_train / voc_2007_test" in text
    assert "- 1 file(s) skipped:" in text
    assert "finetune.scratch.voc0712.s5-01234567/result.json`: line 1: not JSON" in text
    against = [cells(line) for line in text.split("Against ImageNet supervised")[1].splitlines() if line[:1] == "|"]
    assert against[2][1].startswith("-25.5 [-25.7, -25.3], p <0.001, sees 0.3, n 5 vs 5")
    assert against[2][3] == "-11.6, no test, n 1 vs 1"


def test_markdown_survives_pipes_and_line_breaks(tmp_path: Path) -> None:
    made = Run(tmp_path, [("a", "one|two\nthree", None)], {"voc07": 1})
    made.finetune("a", "voc07", 1, result("a", "voc07", 1, [1.0, 2.0, 3.0]))
    text = markdown.render(build_report(collect([made.save()]), Options()))
    (line,) = [line for line in text.splitlines() if "three" in line]
    assert line.startswith(r"| one\|two three ")


def test_csv(run: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv.render(build_report(collect([run]), Options())))))
    assert [row["row"] for row in rows] == ["scratch", "supervised", "simsiam"]
    scratch, _, simsiam = rows
    names = ("voc0712.bbox.AP", "voc0712.bbox.AP std", "voc0712.bbox.AP published", "voc0712.bbox.AP difference")
    assert [scratch[name] for name in names] == ["35.0", "1.0", "33.8", "1.2"]
    assert (scratch["voc0712.bbox n"], scratch["voc0712.bbox asked"]) == ("3", "5")
    assert scratch["voc0712.bbox split"] == "voc_2007_trainval + voc_2012_train / voc_2007_test"
    assert scratch["voc0712.bbox marks"].startswith("incomplete (3 of 5 trials")
    assert [simsiam[name] for name in names] == ["mixed", "", "56.4", ""]
    assert (simsiam["voc07.bbox.AP bold"], scratch["voc07.bbox.AP bold"]) == ("bold", "")
    assert simsiam["coco.bbox.AP difference"] == ""


def test_long_csv_has_a_line_for_each_counted_value(run: Path, tmp_path: Path) -> None:
    text = as_csv.render_long(build_report(collect([run]), Options(published="rows")))
    lines = list(csv.DictReader(io.StringIO(text)))
    assert list(lines[0]) == ["row", "task", "metric", "seed", "value", "low", "high"]
    cell = [line for line in lines if (line["row"], line["task"], line["metric"]) == ("simsiam", "voc07", "bbox/AP")]
    assert {line["seed"]: float(line["value"]) for line in cell} == pytest.approx(
        {str(seed): 47.1 + offset for seed, offset in enumerate(FIVE, 1)}
    )
    assert {line["metric"] for line in lines if line["task"] == "coco"} >= {"segm/AP", "bbox/AP75"}
    put(tmp_path / "a", result("mine", "voc07", 1, [1.0, 2.0, 3.0]))
    put(tmp_path / "b", result("mine", "voc07", 1, [4.0, 5.0, 6.0]))  # the seed again: no independent sample
    text = as_csv.render_long(build_report(collect([tmp_path]), Options()))
    assert text.splitlines()[1:] == [
        f"mine,voc07,bbox/{m},1,{v},," for m, v in (("AP50", 1.0), ("AP", 2.0), ("AP75", 3.0))
    ]


def test_json_holds_full_precision_and_provenance_by_field(run: Path) -> None:
    made = json.loads(as_json.render(build_report(collect([run]), Options())))
    assert made["format"] == "table/1"
    assert made["read"] == 31
    assert [Path(skipped["path"]).parent.name for skipped in made["skipped"]] == [
        "finetune.scratch.voc0712.s5-01234567"
    ]
    rows = {row["key"]: row for row in made["tables"][0]["rows"]}
    cell = rows["simsiam"]["cells"]["voc07.bbox"]
    assert cell["values"]["AP"]["std"] == pytest.approx(0.025**0.5, rel=1e-12)
    assert cell["values"]["AP"]["against"]["n_other"] == 5
    trial = cell["trials"][2]
    assert (trial["seed"], trial["lr"], trial["counted"]) == (3, 0.02, True)
    assert trial["weights"]["path"] == "simsiam.pkl"
    assert trial["weights"]["sha256"] == "b" * 64
    assert trial["weights"]["source"]["sha256"] == "c" * 64
    assert trial["pretraining"] == {
        "method": "simsiam",
        "recipe": "simsiam_r50_200ep",
        "epochs": 200,
        "commit": "fedcba",
    }
    assert trial["commit"] == "0123456789abcdef0123456789abcdef01234567"
    assert trial["environment"]["torch"] == "2.14.1"
    assert trial["settings"]["evaluator"] == "voc"
    assert trial["config"]["file"] == "configs/transfer/voc07.yaml"
    assert Path(trial["result"]).is_file()
    assert trial["gpu_hours"] == pytest.approx(8 * 3780 / 3600)
    mixed = rows["simsiam"]["cells"]["voc0712.bbox"]
    assert mixed["values"]["AP"]["mean"] is None
    assert [t["lr"] for t in mixed["trials"]] == [0.02] * 3 + [0.1] * 2
    assert [m["kind"] for m in mixed["marks"]] == ["mixed"]


def test_json_of_a_result_with_nan_in_a_section_is_valid(tmp_path: Path) -> None:
    put(tmp_path, json.dumps(result("a", "voc07", 1, [1.0, 2.0, 3.0], timing={"train_seconds": float("nan")})))
    text = as_json.render(build_report(collect([tmp_path]), Options()))
    assert "NaN" not in text
    json.loads(text)


def test_json_records_how_the_lr_was_chosen(tmp_path: Path) -> None:
    put(tmp_path, result("mine", "voc07", 1, [75.0, 47.0, 50.0]))
    record = {
        "format": "lr-search/1",
        "row": "mine",
        "task": "voc07",
        "seed": 0,
        "split": "voc_2007_test",
        "metric": "bbox/AP",
    }
    points = [{"lr": 0.02, "value": 47.0}, {"lr": 0.1, "value": None, "status": "diverged"}]
    (tmp_path / "lr_search.json").write_text(json.dumps({**record, "points": points, "chosen": 0.02}))
    made = json.loads(as_json.render(build_report(collect([tmp_path]), Options())))
    found = made["tables"][0]["rows"][0]["cells"]["voc07.bbox"]["lr_search"]
    assert found["tried"] == {"0.02": 47.0, "0.1": "diverged"}
    assert (found["chosen"], found["split"]) == (0.02, "voc_2007_test")


def test_latex(run: Path) -> None:
    text = latex.render(build_report(collect([run]), Options()))
    lines = {line.split(" & ")[0]: line for line in text.splitlines() if " & " in line}
    assert lines["SimSiam, base"].split(" & ")[1:5] == [
        r"\textbf{75.6}{\scriptsize$\pm$0.2}",
        r"\textbf{47.1}{\scriptsize$\pm$0.2}",
        r"\textbf{50.0}{\scriptsize$\pm$0.2}",
        "mixed",
    ]
    assert lines["scratch"].split(" & ")[6] == r"33.0{\scriptsize$\pm$0.0}\textsuperscript{a}"
    assert r"\multicolumn{3}{c}{VOC 07+12 detection}" in text
    assert r"AP$^{\mathrm{mask}}_{75}$" in text
    assert [text.count(word) for word in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    assert r"VOC 07+12 detection 3/5 or 4/5 or 5" in text
    assert "voc\\_2012\\_train / voc\\_2007\\_test" in text


def test_latex_special_characters_are_harmless() -> None:
    assert latex.escape(r"50% of a_b & $c #1 {x} ~ ^ \d ± …") == (
        r"50\% of a\_b \& \$c \#1 \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{}d $\pm$ \dots{}"
    )


def test_published_rows_alone_in_latex_are_the_papers_table() -> None:
    text = latex.render(build_report(collect([]), Options(published="rows")))
    (line,) = [line for line in text.splitlines() if line.startswith("BYOL")]
    assert line.startswith(r"BYOL (repro.) (published) & \textbf{77.1} & 47.0 & 49.9 & 81.4 & 55.3")


def test_pre_training_alone_makes_no_empty_table(tmp_path: Path) -> None:
    run = Run(tmp_path, [("simsiam", "SimSiam", None)], {})
    run.pretrain("simsiam", pretrain_result(), pretrain_lines())
    made = build_report(collect([run.save()]), Options())
    assert made.tables == ()
    text = markdown.render(made)
    assert "|" not in text and "Pre-training alone, so no table: SimSiam (done)" in text
    assert latex.render(made).strip() and as_csv.render(made) == ""
    assert build_report(collect([run.folder]), Options(layout="table5")).tables[0].layout == "table5"
