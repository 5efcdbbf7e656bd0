"""The shipped numbers against a second typing of the paper's tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_transfer.errors import UserError
from transfer.report.published import LAYOUTS, load_expected

TABLE5 = """
scratch          35.9/16.8/13.0 60.2/33.8/33.1 44.0/26.4/27.8 46.9/29.3/30.8
supervised       74.4/42.4/42.7 81.3/53.5/58.8 58.2/38.2/41.2 54.7/33.3/35.2
simclr           75.9/46.8/50.1 81.8/55.5/61.4 57.7/37.9/40.9 54.6/33.3/35.3
moco_v2          77.1/48.5/52.5 82.3/57.0/63.3 58.8/39.2/42.5 55.5/34.3/36.6
byol             77.1/47.0/49.9 81.4/55.3/61.1 57.8/37.9/40.9 54.3/33.2/35.0
swav             75.5/46.5/49.6 81.5/55.4/61.4 57.6/37.6/40.3 54.2/33.1/35.1
simsiam_base     75.5/47.0/50.2 82.0/56.4/62.8 57.5/37.9/40.9 54.2/33.2/35.2
simsiam_optimal  77.3/48.5/52.5 82.4/57.0/63.7 59.3/39.2/42.1 56.0/34.4/36.7
"""
PLACES = [("voc07", "bbox"), ("voc0712", "bbox"), ("coco", "bbox"), ("coco", "segm")]
TABLE4 = {
    "simclr": [66.5, 68.3, 69.8, 70.4],
    "moco_v2": [67.4, 69.9, 71.0, 72.2],
    "byol": [66.5, 70.6, 73.2, 74.3],
    "swav": [66.5, 69.1, 70.7, 71.8],
    "simsiam": [68.1, 70.0, 70.8, 71.3],
}


@pytest.mark.parametrize("line", TABLE5.split("\n")[1:-1])
def test_table5_holds_the_papers_digits(line: str) -> None:
    row, *groups = line.split()
    for (task, branch), group in zip(PLACES, groups, strict=True):
        values = [float(v) for v in group.split("/")]
        assert load_expected("table5").entry(row, task, branch).values == dict(
            zip(("AP50", "AP", "AP75"), values, strict=True)
        )


@pytest.mark.parametrize("row", TABLE4)
def test_table4_holds_the_papers_digits(row: str) -> None:
    table = load_expected("table4")
    found = [table.entry(row, f"linear_{epochs}ep", "linear").values["top1"] for epochs in (100, 200, 400, 800)]
    assert found == TABLE4[row]


def test_voc0712_splits_compare_with_published_rows_and_one_with_the_moco_checkpoints() -> None:
    table = load_expected("table5")
    assert table.entry("byol", "voc0712_trainval", "bbox").values == table.entry("byol", "voc0712", "bbox").values
    assert table.entry("moco_v2_public", "voc0712_trainval", "bbox").values == {"AP50": 82.4, "AP": 57.0, "AP75": 63.6}
    assert table.entry("moco_v2_public", "voc0712", "bbox").values == {}


FPN = """
scratch_fpn_pixpro     32.8 29.9
supervised_fpn_pixpro  39.7 35.9
moco_v1_fpn_pixpro     39.4 35.6
simclr_fpn_pixpro      39.8 35.9
moco_v2_fpn_pixpro     40.4 36.4
infomin_fpn_pixpro     40.6 36.7
pixpro_fpn             40.8 36.8
scratch_fpn_soco       31.0 28.5
supervised_fpn_soco    38.9 35.4
soco_fpn               42.3 37.6
soco_fpn_400ep         43.0 38.2
soco_fpn_user          39.8 36.0
"""
"""Box and mask AP as PixPro's and SoCo's README.md print them."""


def test_the_fpn_rows_hold_their_repositories_digits_each_with_its_source() -> None:
    table = load_expected("table5")
    typed = {line.split()[0]: [float(v) for v in line.split()[1:]] for line in FPN.split("\n")[1:-1]}
    assert {row.key for row in table.rows if row.group} == typed.keys()
    for key, numbers in typed.items():
        assert [table.entry(key, "coco_fpn", branch).values["AP"] for branch in ("bbox", "segm")] == numbers
        source = str(table.row_by_key[key].source)
        assert ("PixPro" if "pixpro" in key else "SoCo") in source and table.entry(key, "coco", "bbox").values == {}
    assert table.entry("supervised", "coco_fpn", "bbox").values == {}  # the paper has none


def test_nothing_is_published_for_the_long_coco_schedule_or_an_unknown_row() -> None:
    table = load_expected("table5")
    assert table.entry("byol", "coco_2x", "bbox").values == {}
    assert table.entry("mine", "coco", "bbox").values == {}
    assert table.entry(None, "coco", "bbox").values == {}


def test_text_that_the_paper_prints_instead_of_a_number() -> None:
    table = load_expected("ablations")
    assert table.entry("bn_all", "linear_100ep", "linear").text == "unstable"
    assert table.entry("swav_no_stopgrad", "linear_100ep", "linear").text == "NaN"
    assert table.entry("stopgrad", "linear_100ep", "linear").stds == {"top1": 0.1}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_file_is_complete(layout: str) -> None:
    table = load_expected(layout)
    assert "2011.10566" in table.source
    for row in table.rows:
        assert set(row.values) <= set(table.column_by_key)
        assert set(row.tasks) <= set(table.tasks)
        assert row.values or row.tasks
        for values in [*row.values.values(), *row.stds.values(), *row.tasks.values()]:
            assert len(values) == len(table.metrics)
    for task in table.tasks.values():
        assert set(task.columns) <= set(table.column_by_key)


def test_a_malformed_file_is_refused_with_file_and_key(tmp_path: Path) -> None:
    (tmp_path / "table5.yaml").write_text("layout: table5\n")
    with pytest.raises(UserError, match=r"table5\.yaml: title: is missing"):
        load_expected("table5", tmp_path)
