"""Intervals and verdicts of a table: what they cover, what they say, and which pairs are refused."""

from __future__ import annotations

import csv
import io
import json
import random
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors

from ssl_transfer.console import call_main
from ssl_transfer.formats.detections import Matches
from tests.transfer.report.made_results import FIVE, keep, put, result
from tools import table as tool
from transfer.report.collect import collect
from transfer.report.evidence import Evidence
from transfer.report.figures import all_plots
from transfer.report.model import Cell, Report, Table
from transfer.report.render import csv as as_csv
from transfer.report.render import html, latex, markdown
from transfer.report.render import json as as_json
from transfer.report.tables import Options, build_report


def put_kept(folder: Path, row: str, values: list[float], task: str = "voc07", **changes: Any) -> None:
    """Trials with detections: each resampled AP is the trial's plus a noise that all share and a little of its own."""
    for seed, value in enumerate(values, 1):
        where = folder / f"{row}-{task}-{seed}"
        settings = {key: changes[key] for key in changes if "__" in key or key == "toy"}
        content = result(row, task, seed, [value + 30, value, value + 1], **settings)
        fields = {key: value for key, value in changes.items() if "__" not in key}
        put(where, keep(where, content, own=100 * sum(map(ord, row)) + seed, **fields))


def table_of(folder: Path, **options: Any) -> Table:
    return build_report(collect([folder]), Options(**options)).tables[0]


def cell_of(table: Table, row: str, column: str = "voc07.bbox") -> Cell:
    return next(found.cells[column] for found in table.rows if found.key == row)


def said(table: Table, row: str) -> str:
    against = cell_of(table, row).values["AP"].against
    assert against is not None
    return against.sentence


class TestIntervals:
    def test_one_trial_has_the_interval_of_its_images(self, tmp_path: Path) -> None:
        put_kept(tmp_path, "mine", [42.0], noise=0.5, extra=0.0)
        own = cell_of(table_of(tmp_path), "mine").values["AP"].interval
        assert own is not None and own.covers == "test images"
        assert (own.low, own.high) == pytest.approx((42 - 0.98, 42 + 0.98), abs=0.06)

    def test_several_trials_cover_their_seeds_too(self, tmp_path: Path) -> None:
        put_kept(tmp_path, "mine", [40.0, 41.0, 42.0, 43.0, 44.0], noise=0.1, extra=0.0)
        own = cell_of(table_of(tmp_path), "mine").values["AP"].interval
        assert own is not None and own.covers == "test images and seeds"
        assert 1.2 < (own.high - own.low) / 2 < 2.2, "Student's t makes 1.96"

    def test_trials_without_detections_have_one_of_their_seeds(self, tmp_path: Path) -> None:
        for seed, offset in enumerate(FIVE, 1):
            put(tmp_path / str(seed), result("mine", "voc07", seed, [70.0, 42 + offset, 40.0]))
        put(tmp_path / "single", result("single", "voc07", 1, [70.0, 42.0, 40.0]))
        table = table_of(tmp_path)
        own = cell_of(table, "mine").values["AP"].interval
        assert own is not None and own.covers == "seeds" and own.high - 42 == pytest.approx(0.196, abs=1e-3)
        assert cell_of(table, "single").values["AP"].interval is None
        (note,) = [note for note in table.notes if "no detections" in note]
        assert (
            note.startswith("6 of 6 trials") and "tools/transfer.py --config-file configs/transfer/voc07.yaml" in note
        )
        assert f"--output {tmp_path / '1'}" in note and note.endswith("--eval-only")

    def test_detections_that_eval_only_made_are_used(self, tmp_path: Path) -> None:
        content = result("mine", "voc07", 1, [70.0, 42.0, 40.0])
        keep(tmp_path / "a", content, name="evaluation.detections.safetensors")
        put(tmp_path / "a", content)
        table = table_of(tmp_path)
        assert cell_of(table, "mine").values["AP"].interval is not None
        assert not any("no detections" in note for note in table.notes)

    def test_a_damaged_file_is_replaced_by_what_eval_only_made(self, tmp_path: Path) -> None:
        put_kept(tmp_path, "mine", [42.0])
        folder = tmp_path / "mine-voc07-1"
        own, made = folder / "detections.safetensors", folder / "evaluation.detections.safetensors"
        shutil.copy(own, made)
        own.write_bytes(own.read_bytes()[:200])
        table = table_of(tmp_path)
        assert cell_of(table, "mine").values["AP"].interval is not None and not any("damaged" in n for n in table.notes)
        made.write_bytes(own.read_bytes())
        assert any(str(own) in note for note in table_of(tmp_path).notes)


class TestVerdicts:
    def test_a_planted_difference_is_found(self, tmp_path: Path) -> None:
        put_kept(tmp_path, "supervised", [42.0 + o for o in FIVE])
        put_kept(tmp_path, "mine", [46.6 + o for o in FIVE])
        put_kept(tmp_path, "same", [42.0 + o for o in FIVE])
        table = table_of(tmp_path)
        found = cell_of(table, "mine").values["AP"].against
        assert found is not None and found.covers == "test images and seeds" and (found.n, found.n_other) == (5, 5)
        assert found.difference == pytest.approx(4.6) and found.low > 4.2 and found.high < 5.0
        assert found.p is not None and found.p_holm == pytest.approx(2 * found.p) and found.p_holm < 0.01
        text = said(table, "mine")
        assert text == "mine is above supervised by 4.6 ± 0.2 AP; seen in every resample; p <0.001 (Holm, 2 rows)."

    def test_none_is_found_where_there_is_none(self, tmp_path: Path) -> None:
        put_kept(tmp_path, "supervised", [42.0])
        put_kept(tmp_path, "mine", [42.05])
        table = table_of(tmp_path)
        found = cell_of(table, "mine").values["AP"].against
        assert found is not None and found.covers == "test images"
        assert found.p_holm > 0.05 and found.low < 0 < found.high
        assert found.detectable == pytest.approx(2.8 * 0.1 * 2**0.5, abs=0.06)
        assert "mine cannot be told from supervised" in said(table, "mine")
        assert "a difference of 0.4 could have been seen (test images only: other seeds may differ)" in said(
            table, "mine"
        )

    def test_images_are_paired(self, tmp_path: Path) -> None:
        """The difference is known ten times better than either mean."""
        put_kept(tmp_path, "supervised", [42.0], noise=2.0, extra=0.05)
        put_kept(tmp_path, "mine", [42.5], noise=2.0, extra=0.05)
        cell = cell_of(table_of(tmp_path), "mine").values["AP"]
        assert cell.interval.high - cell.interval.low > 7
        assert cell.against.high - cell.against.low < 0.5 and cell.against.p_holm < 0.05

    def test_holm_is_over_the_rows_of_a_column_and_metric(self, tmp_path: Path) -> None:
        put_kept(tmp_path, "supervised", [42.0])
        for row, value in {"a": 42.3, "b": 42.25, "c": 42.0}.items():
            put_kept(tmp_path, row, [value])
        table = table_of(tmp_path)
        found = sorted((cell_of(table, row).values["AP"].against for row in "abc"), key=lambda one: one.p)
        expected = np.maximum.accumulate([one.p * factor for one, factor in zip(found, (3, 2, 1), strict=True)])
        assert [one.p_holm for one in found] == pytest.approx(np.minimum(expected, 1.0))

    def test_without_detections_it_is_welchs(self, tmp_path: Path) -> None:
        from scipy.stats import ttest_ind

        values = {"supervised": [42.0, 42.3, 42.1], "mine": [42.6, 42.5, 42.8]}
        for row, aps in values.items():
            for seed, ap in enumerate(aps, 1):
                put(tmp_path / f"{row}{seed}", result(row, "voc07", seed, [70.0, ap, 40.0]))
        found = cell_of(table_of(tmp_path), "mine").values["AP"].against
        assert found.covers == "seeds" and found.p == pytest.approx(ttest_ind(*values.values(), equal_var=False).pvalue)

    def test_one_trial_without_detections_has_no_verdict(self, tmp_path: Path) -> None:
        put_kept(tmp_path, "supervised", [42.0])
        put(tmp_path / "b", result("mine", "voc07", 1, [70.0, 44.0, 40.0]))
        found = cell_of(table_of(tmp_path), "mine").values["AP"].against
        assert (found.difference, found.low, found.p_holm, found.covers) == (2.0, None, None, "")


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"truth": "f" * 64}, "annotations of their test images differ (SHA-256 eeeeeeeeeeee and ffffffffffff)"),
            ({"classes": ("cat", "dog", "bus")}, "class lists differ (not in all: bus, sofa)"),
            ({"metric": "voc2012"}, "definitions of AP differ (voc2007 and voc2012)"),
            ({"toy": True}, "one is a toy run, the other is not"),
        ],
    )
    def test_pairs_that_measure_something_else_are_refused(
        self, tmp_path: Path, changes: dict, reason: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        put_kept(tmp_path, "supervised", [42.0])
        put_kept(tmp_path, "mine", [44.0], **changes)
        table = table_of(tmp_path, allow_toy=True)
        cell = cell_of(table, "mine")
        assert cell.values["AP"].against is None and reason in cell.not_compared
        assert f"mine is not compared: {cell.not_compared}." in markdown.render(
            build_report(collect([tmp_path]), Options(allow_toy=True))
        )
        assert call_main(tool.main, [str(tmp_path), "--against", "supervised", "--allow-toy"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "--against supervised" in line and reason in line

    def test_other_rows_are_compared_nevertheless(self, tmp_path: Path) -> None:
        put_kept(tmp_path, "supervised", [42.0])
        put_kept(tmp_path, "mine", [44.0])
        put_kept(tmp_path, "elsewhere", [44.0], truth="f" * 64)
        table = table_of(tmp_path, against="supervised")
        assert cell_of(table, "mine").values["AP"].against is not None
        assert cell_of(table, "elsewhere").values["AP"].against is None


class TestFiles:
    def test_a_damaged_file_is_named_and_the_table_goes_on(self, tmp_path: Path) -> None:
        put_kept(tmp_path, "mine", [42.0])
        file = tmp_path / "mine-voc07-1" / "detections.safetensors"
        file.write_bytes(file.read_bytes()[:200])
        table = table_of(tmp_path)
        assert cell_of(table, "mine").values["AP"].mean == 42.0
        assert any(str(file) in note and "--eval-only" in note for note in table.notes)

    def test_damage_is_noticed_or_is_where_a_table_does_not_look(self, tmp_path: Path) -> None:
        put_kept(tmp_path, "mine", [42.0])
        (trial,), file = collect([tmp_path]).trials, tmp_path / "mine-voc07-1" / "detections.safetensors"
        content, source, used = file.read_bytes(), random.Random(0), 0
        header = 8 + int.from_bytes(content[:8], "little")
        written = Evidence().resamples([trial], "bbox", "AP")
        assert written is not None
        for _ in range(300):
            damaged = bytearray(content)
            for _ in range(source.randint(1, 3)):
                damaged[source.randrange(header if source.random() < 0.8 else len(content))] = source.randrange(256)
            file.write_bytes(damaged)
            evidence = Evidence()
            if (found := evidence.resamples([trial], "bbox", "AP")) is not None:
                used += 1
                np.testing.assert_array_equal(found, written)
            assert evidence.refusal([trial], "bbox") == ""
        assert 0 < used < 150

    def test_another_trials_file_is_noticed(self, tmp_path: Path) -> None:
        put_kept(tmp_path, "mine", [42.0])
        put_kept(tmp_path, "other", [52.0])
        file = "detections.safetensors"
        shutil.copy(tmp_path / "other-voc07-1" / file, tmp_path / "mine-voc07-1" / file)
        table = table_of(tmp_path)
        assert cell_of(table, "mine").values["AP"].interval is None
        assert any("is not of the detections beside it" in note for note in table.notes)

    def test_trials_that_drew_other_test_sets_are_resampled_anew(self, tmp_path: Path) -> None:
        """From their matches: here 40 images with one object each, which one detector finds and the other half of."""
        for row, every in (("supervised", 2), ("mine", 1)):
            point = {1: 100.0, 2: 54.545454}[every]
            content = result(row, "voc07", 1, [point, point, point])
            content["metrics"] = {"bbox": dict.fromkeys(("AP50", "AP", "AP75"), point)}
            one = matches(40, every)
            arrays = {"image": one.image, "label": one.label, "score": one.score.astype(np.float32)}
            changes: dict[str, Any] = {"matches": {"bbox": one}, "images": tuple(map(str, range(40))), **arrays}
            changes |= {"boxes": np.zeros((len(one.image), 4), np.float32)}
            changes |= {"classes": ("cat",), "extra": 5.0, "draws": row}
            put(tmp_path / row, keep(tmp_path / row, content, **changes))
        found = cell_of(table_of(tmp_path), "mine").values["AP"].against
        assert found is not None and found.covers == "test images" and found.p_holm < 0.001
        assert 15 < found.high - found.low < 50, "a half of 40 images has a standard deviation of 8 points"

    def test_trials_of_one_row_on_different_test_sets_are_not_paired(self, tmp_path: Path) -> None:
        put_kept(tmp_path, "mine", [42.0, 42.2])
        content = result("mine", "voc07", 3, [72.0, 42.1, 43.0])
        put(tmp_path / "c", keep(tmp_path / "c", content, truth="f" * 64, draws="other"))
        assert cell_of(table_of(tmp_path), "mine").values["AP"].interval.covers == "seeds"

    def test_a_file_is_read_once_and_in_part(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for row in ("supervised", "mine"):
            put_kept(tmp_path, row, [42.0], boxes=np.zeros((500_000, 4), np.float32))
        opened: list[Path] = []
        real = safetensors.safe_open
        monkeypatch.setattr(safetensors, "safe_open", lambda file, kind: opened.append(file) or real(file, kind))
        tracemalloc.start()
        table = table_of(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert cell_of(table, "mine").values["AP"].interval is not None
        assert peak < 6 << 20, "the boxes of each file are 8 MB"
        assert len(opened) == len(set(opened)) == 2


def matches(images: int, every: int) -> Matches:
    """One object in each image, found in every so many images by a detection without a false one."""
    found = np.arange(0, images, every, dtype=np.int32)
    hit, none = np.full((4, len(found)), 1023, np.uint16), np.zeros((4, len(found)), np.uint16)
    label, score = np.zeros(len(found), np.int16), np.full(len(found), 0.9)
    objects = np.arange(images, dtype=np.int32), np.zeros(images, np.int16), np.full(images, 3, np.uint8)
    return Matches(found, label, score, hit, none, np.arange(len(found), dtype=np.int32), *objects)


class TestFormats:
    @pytest.fixture
    def report(self, tmp_path: Path) -> Report:
        put_kept(tmp_path, "supervised", [42.0, 42.4], extra=0.0)
        put_kept(tmp_path, "mine", [46.0, 46.4], extra=0.0)
        put_kept(tmp_path, "elsewhere", [44.0], truth="f" * 64)
        return build_report(collect([tmp_path]), Options())

    def test_markdown(self, report: Report) -> None:
        text = markdown.render(report)
        assert "| 42.2 ± 0.3 [" in text and "[95 % interval]" in text
        assert "- VOC 07 detection: mine is above supervised by 4.0 ± " in text
        assert "- VOC 07 detection: elsewhere is not compared: the annotations of their test images differ" in text

    def test_csv(self, report: Report) -> None:
        head, *lines = csv.reader(io.StringIO(as_csv.render(report)))
        assert head.index("row marks") < head.index("voc07.bbox.AP50 low"), "new columns are at the end"
        rows = {line[1]: dict(zip(head, line, strict=True)) for line in lines}
        mine, other = rows["mine"], rows["elsewhere"]
        assert mine["voc07.bbox.AP against"] == "4.0" and float(mine["voc07.bbox.AP against p"]) < 0.05
        assert mine["voc07.bbox.AP covers"] == "test images and seeds"
        low, high = float(mine["voc07.bbox.AP low"]), float(mine["voc07.bbox.AP high"])
        assert low < 46.2 < high
        assert "annotations" in other["voc07.bbox.AP against covers"] and other["voc07.bbox.AP against"] == ""

    def test_long_csv_has_the_interval_of_each_trial(self, report: Report) -> None:
        lines = list(csv.DictReader(io.StringIO(as_csv.render_long(report))))
        (one,) = [x for x in lines if (x["row"], x["metric"], x["seed"]) == ("mine", "bbox/AP", "2")]
        assert (float(one["low"]), float(one["high"])) == pytest.approx((46.4 - 0.98, 46.4 + 0.98), abs=0.06)

    def test_json(self, report: Report) -> None:
        rows = {row["key"]: row for row in json.loads(as_json.render(report))["tables"][0]["rows"]}
        value = rows["mine"]["cells"]["voc07.bbox"]["values"]["AP"]
        assert value["interval"]["covers"] == "test images and seeds"
        assert value["against"].keys() >= {"low", "high", "p", "p_holm", "detectable", "sentence"}
        assert "annotations" in rows["elsewhere"]["cells"]["voc07.bbox"]["not_compared"]

    def test_latex(self, report: Report) -> None:
        text = latex.render(report)
        assert text.count(r"\tiny {[") == 9 and "mine is above supervised by 4.0 $\\pm$" in text

    def test_page(self, report: Report) -> None:
        text = html.render(report)
        assert text.count('class="paper interval"') == 9
        assert "<span>mine is above supervised by 4.0 ± " in text and "<span>elsewhere is not compared: " in text

    def test_plots_draw_intervals_as_error_bars(self, report: Report) -> None:
        plot = next(plot for plot in all_plots(report) if plot.name == "trials-table5-voc07-bbox-ap")
        own = next(row for row in report.tables[0].rows if row.key == "elsewhere").cells["voc07.bbox"].values["AP"]
        bars = [line for line in plot.draw().axes[0].lines if line.get_label() == "95 % interval"]
        assert [own.interval.low, own.interval.high] in [list(bar.get_xdata()) for bar in bars]
        assert {bar.get_linestyle() for bar in bars} == {"-"} and "95 % interval [" in plot.alt
