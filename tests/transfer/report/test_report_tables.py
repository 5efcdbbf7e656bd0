"""Cells, marks, mixing, bold, comparison: against values computed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_transfer.errors import UserError
from tests.transfer.report.made_results import FIVE, Run, diverged, put, result, whole
from transfer.report.collect import add_imported, collect
from transfer.report.model import Cell, Report, Table
from transfer.report.published import load_expected
from transfer.report.tables import Options, build_report


def table_of(*folders: Path, **options: object) -> Table:
    (table,) = build_report(collect(folders), Options(**options)).tables
    return table


def cell_of(table: Table, row: str, column: str = "voc07.bbox") -> Cell:
    return next(r for r in table.rows if r.key == row).cells[column]


def kinds(cell: Cell) -> list[str]:
    return [flag.kind for flag in cell.flags]


def put_trials(folder: Path, row: str, task: str, values: list[float], **changes: object) -> None:
    for seed, value in enumerate(values, 1):
        put(folder / f"{row}-{task}-{seed}", result(row, task, seed, [value + 30, value, value + 3], **changes))


def test_mean_std_n_published_and_difference(tmp_path: Path) -> None:
    put_trials(tmp_path, "supervised", "voc07", [42.0 + offset for offset in FIVE])
    cell = cell_of(table_of(tmp_path), "supervised")
    value = cell.values["AP"]
    assert (cell.n, cell.requested, kinds(cell)) == (5, 5, [])
    assert value.mean == pytest.approx(42.0)
    assert value.std == pytest.approx(0.025**0.5)
    assert (value.published, value.difference) == (42.4, pytest.approx(-0.4))


def test_one_trial_has_no_std(tmp_path: Path) -> None:
    put(tmp_path, result("supervised", "coco", 1, [58.0, 38.0, 41.0], [54.0, 33.0, 35.0]))
    table = table_of(tmp_path)
    assert [column.key for column in table.columns] == ["coco.bbox", "coco.segm"]
    assert cell_of(table, "supervised", "coco.segm").values["AP"].std is None
    assert kinds(cell_of(table, "supervised", "coco.segm")) == [], "COCO asks for one"


def test_c4_and_fpn_stand_side_by_side_and_a_row_names_the_repository_it_compares_with(tmp_path: Path) -> None:
    put(tmp_path / "c4", result("supervised", "coco", 1, [58.0, 38.0, 41.0], [54.0, 33.0, 35.0]))
    put(tmp_path / "fpn", result("supervised", "coco_fpn", 1, [59.0, 39.0, 43.0], [56.0, 35.6, 38.0]))
    table = table_of(tmp_path)
    assert [column.key for column in table.columns] == ["coco.bbox", "coco.segm", "coco_fpn.bbox", "coco_fpn.segm"]
    assert table.title.startswith("Table 5")
    differences = {}
    for key in ("supervised_fpn_pixpro", "supervised_fpn_soco"):
        alone = table_of(tmp_path / "fpn", expect={"supervised": key})
        differences[key] = cell_of(alone, "supervised", "coco_fpn.bbox").values["AP"].difference
        assert alone.title == "Transfer to detection" and not any("2011.10566" in note for note in alone.notes)
        assert any(("PixPro" if "pixpro" in key else "SoCo") in note for note in alone.notes)
    assert differences == {
        "supervised_fpn_pixpro": pytest.approx(-0.7),
        "supervised_fpn_soco": pytest.approx(0.1),
    }
    rows = {row.key for row in table_of(tmp_path, published="rows").rows}
    assert {"published:supervised", "published:supervised_fpn_pixpro", "published:soco_fpn_user"} <= rows
    assert all("fpn" not in column.task for column in table_of(published="rows").columns)


def test_incomplete_by_the_published_count_and_by_the_experiments(tmp_path: Path) -> None:
    put_trials(tmp_path / "loose", "supervised", "voc07", [42.0, 42.1, 42.2])
    cell = cell_of(table_of(tmp_path / "loose"), "supervised")
    assert [(m.kind, m.text) for m in cell.flags] == [("incomplete", "3 of 5 trials")]
    run = Run(tmp_path / "run", [("supervised", "S", None)], {"voc07": 2})
    for seed in (1, 2):
        run.finetune("supervised", "voc07", seed, result("supervised", "voc07", seed, [74.0, 42.0, 42.0]))
    assert kinds(cell_of(table_of(run.save()), "supervised")) == []


def test_an_experiment_without_any_result_is_a_table_of_empty_cells(tmp_path: Path) -> None:
    run = Run(tmp_path, [("mine", "Mine", "byol")], {"coco": 1})
    run.finetune("mine", "coco", 1, None, status="running")
    table = table_of(run.save())
    assert [column.key for column in table.columns] == ["coco.bbox", "coco.segm"]
    cell = cell_of(table, "mine", "coco.bbox")
    assert (cell.n, cell.values["AP"].mean, cell.values["AP"].published) == (0, None, 37.9)
    assert cell.flags[0].text == "0 of 1 trials; finetune.mine.coco.s1: running"


def test_a_diverged_trial_is_flagged_and_not_averaged(tmp_path: Path) -> None:
    put_trials(tmp_path, "supervised", "voc07", [42.0, 42.0, 42.0, 42.0])
    put(tmp_path / "bad", diverged("supervised", "voc07", 5))
    cell = cell_of(table_of(tmp_path), "supervised")
    assert (cell.n, len(cell.trials), cell.values["AP"].mean) == (4, 5, 42.0)
    assert [(m.kind, m.text) for m in cell.flags] == [
        ("diverged", "seed 5 diverged at iteration 120, lr 0.02: loss_rpn_cls is NaN")
    ]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"settings__lr": 0.1}, "lr: 0.02 (1), 0.1 (1)"),
        ({"settings__iterations": 12500}, "iterations"),
        ({"settings__evaluator": "reference"}, "evaluator"),
        ({"settings__train_splits": ["voc_2007_train"]}, "train_splits"),
        ({"settings__steps": [1, 2]}, "steps"),
        ({"settings__amp": True}, "amp"),
        ({"settings__precise_bn": "fvcore"}, "precise_bn"),
        ({"settings__something_new": 3}, "something_new: unknown (1), 3 (1)"),
        ({"weights__sha256": "f" * 64}, "weights sha256: aaaaaaaaaaaa (1), ffffffffffff (1)"),
        ({"weights__path": "other.pkl", "weights__sha256": None}, "weights sha256"),
    ],
)
def test_mixed_settings_are_flagged_and_not_averaged(changes: dict, named: str, tmp_path: Path) -> None:
    run = Run(tmp_path, [("supervised", "S", None)], {"voc07": 2})
    run.finetune("supervised", "voc07", 1, result("supervised", "voc07", 1, [74.0, 42.0, 42.0]))
    run.finetune("supervised", "voc07", 2, result("supervised", "voc07", 2, [74.0, 42.0, 42.0], **changes))
    cell = cell_of(table_of(run.save()), "supervised")
    assert "mixed" in kinds(cell)
    assert named in next(flag.text for flag in cell.flags if flag.kind == "mixed")
    assert [(v.mean, v.std, v.difference, v.against) for v in cell.values.values()] == [(None, None, None, None)] * 3


@pytest.mark.parametrize("name", ["num_processes", "reference_gpus"])
def test_the_number_of_processes_does_not_mix_trials(name: str, tmp_path: Path) -> None:
    put(tmp_path / "1", result("supervised", "voc07", 1, [74.0, 42.0, 42.0]))
    put(tmp_path / "2", result("supervised", "voc07", 2, [74.0, 42.0, 42.0], **{f"settings__{name}": 1}))
    assert cell_of(table_of(tmp_path), "supervised").values["AP"].mean == 42.0


def test_the_norms_name_mixes_only_where_a_trial_does_not_compare(tmp_path: Path) -> None:
    """One GPU with plain BN over all 16 images is the same as eight with a synchronised one."""
    put(tmp_path / "1", result("supervised", "voc07", 1, [74.0, 42.0, 42.0]))
    put(tmp_path / "2", result("supervised", "voc07", 2, [74.0, 42.0, 42.0], settings__norm="BN"))
    assert cell_of(table_of(tmp_path), "supervised").values["AP"].mean == 42.0
    off = {"ok": False, "reasons": ["normalisation statistics cover 2 images, not 16"]}
    put(tmp_path / "2", result("supervised", "voc07", 2, [74.0, 42.0, 42.0], settings__norm="BN", comparable=off))
    assert "mixed" in kinds(cell_of(table_of(tmp_path), "supervised"))


def test_what_does_not_compare_has_its_reasons_and_no_difference(tmp_path: Path) -> None:
    off = {"ok": False, "reasons": ["total batch is 8, not 16"]}
    put_trials(tmp_path, "supervised", "voc07", [42.0] * 5, comparable=off, settings__iterations=18000)
    cell = cell_of(table_of(tmp_path), "supervised")
    assert [(m.kind, m.text) for m in cell.flags] == [
        ("not comparable", "total batch is 8, not 16; iterations is 18000, not 9000")
    ]
    assert (cell.values["AP"].mean, cell.values["AP"].published, cell.values["AP"].difference) == (42.0, 42.4, None)


def test_another_split_than_the_tasks_does_not_compare(tmp_path: Path) -> None:
    put_trials(tmp_path, "supervised", "voc07", [42.0] * 5, settings__train_splits=["voc_2007_train"])
    (flag,) = cell_of(table_of(tmp_path), "supervised").flags
    assert (flag.kind, flag.text) == ("not comparable", "train_splits is voc_2007_train, not voc_2007_trainval")


def test_the_columns_head_prints_the_split_of_the_results(tmp_path: Path) -> None:
    put_trials(tmp_path, "supervised", "voc0712_trainval", [53.0] * 5)
    (column,) = table_of(tmp_path).columns
    assert column.head == "voc_2007_trainval + voc_2012_trainval / voc_2007_test"
    assert column.label == "VOC 07+12 detection (voc0712_trainval)"
    assert cell_of(table_of(tmp_path), "supervised", column.key).values["AP"].published == 53.5


def test_a_cell_unlike_its_column_is_flagged_and_not_compared(tmp_path: Path) -> None:
    for row in ("scratch", "supervised", "simsiam"):
        more = {"settings__evaluator": "reference"} if row == "simsiam" else {}
        put_trials(tmp_path, row, "voc07", [40.0, 40.1, 40.2, 40.3, 40.4], **more)
    table = table_of(tmp_path)
    (flag,) = cell_of(table, "simsiam").flags
    assert (flag.kind, flag.text) == ("unlike the column", "evaluator is reference, elsewhere voc")
    assert cell_of(table, "simsiam").values["AP"].against is None
    assert cell_of(table, "scratch").values["AP"].against is not None


def test_a_searched_lr_may_differ_from_row_to_row(tmp_path: Path) -> None:
    put_trials(tmp_path, "scratch", "voc07", [17.0] * 5)
    put_trials(tmp_path, "supervised", "voc07", [42.0] * 5, settings__lr=0.1, settings__warmup_iters=1000)
    assert kinds(cell_of(table_of(tmp_path), "supervised")) == []


def test_a_row_with_two_weights_files_is_flagged(tmp_path: Path) -> None:
    run = Run(tmp_path, [("simsiam", "SimSiam", None)], {"voc07": 1, "voc0712": 1})
    run.finetune("simsiam", "voc07", 1, result("simsiam", "voc07", 1, [75.0, 47.0, 50.0]))
    other = result("simsiam", "voc0712", 1, [82.0, 56.0, 62.0], weights__sha256="f" * 64)
    run.finetune("simsiam", "voc0712", 1, other)
    (row,) = table_of(run.save()).rows
    assert [flag.kind for flag in row.flags] == ["mixed"]
    assert "bbbbbbbbbbbb (voc07.bbox), ffffffffffff (voc0712.bbox)" in row.flags[0].text


def test_a_repeated_seed_counts_once(tmp_path: Path) -> None:
    for name, ap in (("a", 42.0), ("b", 44.0)):
        put(tmp_path / name, result("supervised", "voc07", 1, [74.0, ap, 42.0]))
    cell = cell_of(table_of(tmp_path), "supervised")
    assert (cell.n, len(cell.trials), cell.values["AP"].mean) == (1, 2, 42.0)
    assert "repeated" in kinds(cell)


def test_an_outlier_is_flagged_and_counted(tmp_path: Path) -> None:
    put_trials(tmp_path, "supervised", "voc07", [42.0, 42.1, 41.9, 42.0, 35.0])
    cell = cell_of(table_of(tmp_path), "supervised")
    assert cell.values["AP"].outliers == (4,)
    assert cell.n == 5
    assert all(word in cell.flags[0].text for word in ("seed 5", "AP50, AP, AP75"))


def test_a_chosen_row_is_compared_by_welchs_test_where_there_are_no_detections(tmp_path: Path) -> None:
    put_trials(tmp_path, "scratch", "voc07", [1.0, 2.0, 3.0])
    put_trials(tmp_path, "supervised", "voc07", [3.0, 5.0, 7.0])
    table = table_of(tmp_path, against="scratch")
    found = cell_of(table, "supervised").values["AP"].against
    assert (found.difference, found.n, found.n_other) == (3.0, 3, 3)
    half = 3.218759 * (5 / 3) ** 0.5  # t for 2.94 degrees of freedom, 97.5 %
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), rel=1e-6)
    assert (found.p, found.covers) == (pytest.approx(0.1044789), "seeds")
    assert cell_of(table, "scratch").values["AP"].against is None
    other = table_of(tmp_path)
    assert other.against == "supervised", "the default"
    assert cell_of(other, "scratch").values["AP"].against.difference == -3.0
    assert cell_of(table_of(tmp_path, against=None), "supervised").values["AP"].against is None
    with pytest.raises(UserError, match="no such row; did you mean supervised"):
        table_of(tmp_path, against="supervisd")


def test_without_a_result_of_supervised_the_rows_are_compared_with_scratch(tmp_path: Path) -> None:
    run = Run(tmp_path, [(row, row, None) for row in ("scratch", "supervised", "mine")], {"voc07": 1})
    for row in ("scratch", "mine"):
        run.finetune(row, "voc07", 1, result(row, "voc07", 1, [1.0, 2.0, 3.0]))
    run.finetune("supervised", "voc07", 1, diverged("supervised", "voc07", 1))
    assert table_of(run.save()).against == "scratch"


@pytest.mark.parametrize(
    ("row", "task", "is_table5"), [("scratch", "voc07", True), ("mine", "voc07", False), ("scratch", "blood", False)]
)
def test_a_table_is_called_table_5_where_its_columns_and_rows_are(
    tmp_path: Path, row: str, task: str, is_table5: bool
) -> None:
    put_trials(tmp_path, row, task, [1.0, 2.0])
    table = table_of(tmp_path)
    assert table.title.startswith("Table 5") == is_table5
    assert any("arXiv" in note for note in table.notes) == is_table5


def test_the_published_table_fed_in_as_results_has_the_papers_bold_entries(tmp_path: Path) -> None:
    tasks = {"voc07": 5, "voc0712": 5, "coco": 1}
    table5 = load_expected("table5")
    for row in table5.rows:
        for task, trials in tasks.items():
            if not row.values or row.group:  # a public checkpoint's, or another publication's
                continue
            box = table5.entry(row.key, task, "bbox").values
            mask = table5.entry(row.key, task, "segm").values
            for seed in range(trials):
                values = [list(branch.values()) for branch in (box, mask) if branch]
                put(tmp_path / f"{row.key}-{task}-{seed}", result(row.key, task, seed, *values))
    table = table_of(tmp_path)
    bold = {
        row.key: " ".join(f"{c.key}.{m}" for c in table.columns for m in c.metrics if row.cells[c.key].values[m].bold)
        for row in table.rows
    }
    every = " ".join(
        f"{c}.{m}" for c in ("voc07.bbox", "voc0712.bbox", "coco.bbox", "coco.segm") for m in ("AP50", "AP", "AP75")
    )
    assert bold == {
        "scratch": "",
        "supervised": "",
        "simclr": "",
        "moco_v2": every,
        "byol": "voc07.bbox.AP50",
        "swav": "",
        "simsiam_base": "voc0712.bbox.AP50",
        "simsiam_optimal": every,
    }
    assert all(
        abs(v.difference) < 1e-9 for row in table.rows for cell in row.cells.values() for v in cell.values.values()
    )


def test_bold_uses_printed_digits_and_ignores_cells_that_do_not_compare(tmp_path: Path) -> None:
    off = {"ok": False, "reasons": ["total batch is 8, not 16"]}
    put_trials(tmp_path, "a", "voc07", [47.04])
    put_trials(tmp_path, "b", "voc07", [46.46])  # 0.58 below, but 47.0 and 46.5 are what is printed
    put_trials(tmp_path, "c", "voc07", [46.44])
    put_trials(tmp_path, "d", "voc07", [60.0], comparable=off)
    table = table_of(tmp_path)
    assert [cell_of(table, row).values["AP"].bold for row in "abcd"] == [True, True, False, False]
    assert [v.bold for v in cell_of(table_of(*[tmp_path / "a-voc07-1"]), "a").values.values()] == [False] * 3


def toys(folder: Path, row: str, count: int = 2) -> None:
    off = {"ok": False, "reasons": ["total batch is 2, not 16"]}
    put_trials(
        folder, row, "voc07", [30.0 + i for i in range(count)], toy=True, comparable=off, settings__total_batch=2
    )


def test_toys_alone_are_not_compared_with_published_numbers(tmp_path: Path) -> None:
    toys(tmp_path, "scratch")
    toys(tmp_path, "supervised")
    made = build_report(collect([tmp_path]), Options())
    cell = cell_of(made.tables[0], "supervised")
    assert (cell.values["AP"].mean, cell.values["AP"].published, kinds(cell)) == (30.5, None, ["toy"])
    assert "no published number" in made.notes[0]
    shown = cell_of(table_of(tmp_path, allow_toy=True), "supervised")
    assert (shown.values["AP"].published, shown.values["AP"].difference) == (42.4, None)


def test_toys_beside_real_or_published_rows_are_refused_unless_allowed(tmp_path: Path) -> None:
    toys(tmp_path, "scratch")
    with pytest.raises(UserError, match="do not compare with published rows"):
        table_of(tmp_path, published="rows")
    put_trials(tmp_path, "supervised", "voc07", [42.0] * 5)
    with pytest.raises(UserError, match="2 of 7 results are toy"):
        table_of(tmp_path)
    table = table_of(tmp_path, allow_toy=True, published="rows")
    assert kinds(cell_of(table, "scratch")) == ["toy", "unlike the column"]
    assert not cell_of(table, "scratch").values["AP"].bold


def test_published_rows_alone_and_beside(tmp_path: Path) -> None:
    (table,) = build_report(collect([]), Options(published="rows")).tables
    assert [row.key for row in table.rows][:2] == ["published:scratch", "published:supervised"]
    assert len(table.rows) == 8, "the calibration checkpoints have nothing on these tasks"
    put_trials(tmp_path, "mine", "voc0712_trainval", [57.0] * 5)
    keys = [row.key for row in table_of(tmp_path, published="rows").rows]
    assert keys[-1] == "mine"
    assert "published:moco_v2_public" in keys
    assert cell_of(table_of(tmp_path, published="none"), "mine", "voc0712_trainval.bbox").values["AP"].published is None


def test_the_user_names_the_published_row(tmp_path: Path) -> None:
    put_trials(tmp_path, "mine", "voc07", [47.0] * 5)
    cell = cell_of(table_of(tmp_path, expect={"mine": "simsiam_base"}), "mine")
    assert cell.values["AP"].published == 47.0
    with pytest.raises(UserError, match="no such published row; did you mean simsiam_base"):
        table_of(tmp_path, expect={"mine": "simsiam_bas"})
    with pytest.raises(UserError, match="no such row; did you mean mine"):
        table_of(tmp_path, expect={"min": "simsiam_base"})


def test_imported_trials_are_flagged_and_do_not_mix_with_own(tmp_path: Path) -> None:
    put_trials(tmp_path / "own", "moco_v2", "voc0712", [57.0])
    (tmp_path / "metrics.json").write_text('{"bbox/AP": 57.2, "bbox/AP50": 82.0, "bbox/AP75": 63.0}\n')
    found = collect([tmp_path / "own"])
    add_imported(found, "theirs", "voc0712", tmp_path / "metrics.json")
    add_imported(found, "theirs", "voc0712", tmp_path / "metrics.json")
    (table,) = build_report(found, Options()).tables
    cell = cell_of(table, "theirs", "voc0712.bbox")
    assert (cell.n, cell.values["AP"].mean) == (1, 57.2)
    assert "imported" in kinds(cell)
    assert cell_of(table, "moco_v2", "voc0712.bbox").values["AP"].published == 57.0
    found = collect([tmp_path / "own"])
    add_imported(found, "moco_v2", "voc0712", tmp_path / "metrics.json")
    (table,) = build_report(found, Options()).tables
    assert "mixed" in kinds(cell_of(table, "moco_v2", "voc0712.bbox"))


def test_rows_sort_by_a_mean_with_empty_cells_last(tmp_path: Path) -> None:
    found = whole(tmp_path)
    assert [row.key for row in table_of(found, sort="voc0712.bbox.AP").rows] == ["supervised", "scratch", "simsiam"]
    with pytest.raises(UserError, match=r"no such column; did you mean voc07\.bbox\.AP"):
        table_of(found, sort="voc07.box.AP")


def test_a_users_own_task_has_a_column_of_its_own(tmp_path: Path) -> None:
    put_trials(tmp_path, "mine", "ships", [20.0, 21.0])
    table = table_of(tmp_path)
    assert [(c.label, c.head) for c in table.columns] == [("ships detection", "own_train / own_test")]
    assert kinds(cell_of(table, "mine", "ships.bbox")) == []


def linear(folder: Path, recipe: str, epochs: int, top1: float) -> None:
    made = {
        "format": "evaluation-result/1",
        "status": "done",
        "kind": "linear",
        "seed": 0,
        "toy": False,
        "settings": {},
    }
    made |= {"metrics": {"top1": top1}, "weights": {"name": recipe, "origin": {"recipe": recipe, "epochs": epochs}}}
    put(folder / f"{recipe}-{epochs}", made)


def test_table4_has_one_row_per_method_and_one_column_per_epoch_budget(tmp_path: Path) -> None:
    for epochs, top1 in ((100, 68.0), (200, 70.1), (800, 71.0)):
        linear(tmp_path, f"simsiam_{epochs}", epochs, top1)
    expect = {f"simsiam_{epochs}": "simsiam" for epochs in (100, 200, 800)}
    table = table_of(tmp_path, expect=expect)
    assert table.layout == "table4"
    assert [column.label for column in table.columns] == ["100 ep", "200 ep", "800 ep"]
    (row,) = table.rows
    values = [row.cells[f"linear_{e}ep.linear"].values["top1"] for e in (100, 200, 800)]
    assert [(v.mean, v.published, v.bold) for v in values] == [
        (68.0, 68.1, False),
        (70.1, 70.0, False),
        (71.0, 71.3, False),
    ]


def test_ablations_come_in_the_papers_order_under_their_headings(tmp_path: Path) -> None:
    linear(tmp_path, "my_batch_64", 100, 66.0)
    linear(tmp_path, "my_no_stopgrad", 100, 0.2)
    table = table_of(tmp_path, expect={"my_batch_64": "batch_64", "my_no_stopgrad": "no_stopgrad"})
    assert table.layout == "ablations"
    assert [(row.key, row.group) for row in table.rows] == [
        ("no_stopgrad", "stop-gradient (Figure 2)"),
        ("batch_64", "batch size (Table 2)"),
    ]


def test_transfer_and_linear_results_make_two_tables(tmp_path: Path) -> None:
    put_trials(tmp_path, "supervised", "voc07", [42.0] * 5)
    linear(tmp_path, "mine", 200, 60.0)
    made: Report = build_report(collect([tmp_path]), Options())
    assert [table.layout for table in made.tables] == ["table5", "table4"]
    (only,) = build_report(collect([tmp_path]), Options(layout="table4")).tables
    assert [row.key for row in only.rows] == ["mine"]
