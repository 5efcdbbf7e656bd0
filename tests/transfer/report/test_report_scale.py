"""A page of thousands of results: what it draws, reads and weighs is bounded, and its tables are whole."""

from __future__ import annotations

import itertools
import json
import re
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.file_reads import file_reads
from tests.transfer.report.made_results import Run, result
from tests.transfer.report.test_report_page import Page
from transfer.report.collect import collect
from transfer.report.figures import all_plots, curves, style
from transfer.report.figures.curves import read_series
from transfer.report.model import Report
from transfer.report.reading import imported_trial
from transfer.report.render import facts, html
from transfer.report.tables import Options, build_report

MIB = 1 << 20


def made(folder: Path, rows: int, trials: int = 1, lines: int = 30) -> Report:
    """Rows × trials on VOC07; the first row is from scratch, the second has another schedule."""
    names = ["scratch", *(f"row{i}" for i in range(1, rows))]
    run = Run(folder, [(name, f"method {name}", None) for name in names], {"voc07": trials})
    for number, name in enumerate(names):
        for seed in range(1, trials + 1):
            changes = {"weights__sha256": f"{number:064x}", "settings__iterations": 9000 + (number == 1)}
            content = result(name, "voc07", seed, [75 + number / 99, 45 + seed / 99, 48.0], **changes)
            text = "".join(json.dumps({"iteration": i, "total_loss": 1 / (i + 1)}) + "\n" for i in range(lines))
            (run.finetune(name, "voc07", seed, content) / "metrics.json").write_text(text)
    return build_report(collect([run.save()]), Options())


@dataclass
class Rendered:
    """A page with its text, its elements and the metrics files that were read for it."""

    text: str
    reads: dict[str, int]

    @property
    def page(self) -> Page:
        return Page(self.text)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    folder = tmp_path_factory.mktemp("many")
    report = made(folder, 150)
    with file_reads(folder, "metrics.json") as reads:
        text = html.render(report)
    return Rendered(text, dict(reads))


def test_every_row_is_in_the_table_and_has_its_provenance(many: Rendered) -> None:
    page = many.page
    links = [a["href"] for a in page.of("a") if (a.get("href") or "").startswith("#cell-")]
    ids = {attributes.get("id") for attributes in page.of("details")}
    assert len(set(links)) == 150 and {link[1:] for link in links if link} <= ids
    for number in (0, 75, 149):
        assert f"{number:064x}" in many.text


def test_a_plot_shows_the_first_rows_and_says_so(many: Rendered) -> None:
    shown = style.MAX_ROWS
    assert f"({shown} of 150 rows)" in many.text and f"({shown} of 150 trials)" in many.text
    assert set(many.reads.values()) <= {1} and len(many.reads) == shown


def test_what_the_cells_of_a_long_column_share_is_listed_once(many: Rendered) -> None:
    provenance = many.text[many.text.index('<h2 id="provenance">') :]
    assert provenance.count(">Precise BN</th>") == 2  # from scratch has no weights file, and lists everything
    assert provenance.count(">Iterations</th><td>9000</td>") == 2
    other = provenance[provenance.index('<details id="cell-table5-row1-voc07-bbox"') :]
    other = other[: other.index("</details>")]
    assert ">Iterations</th><td>9001</td>" in other and 'href="#facts-table5-voc07-bbox"' in other
    scratch = provenance[provenance.index('<details id="cell-table5-scratch-voc07-bbox"') :]
    assert scratch.index(">Weights</th>") < scratch.index("</details>")


def test_short_columns_list_everything_in_each_cell(tmp_path: Path) -> None:
    text = html.render(made(tmp_path, 3))
    provenance = text[text.index('<h2 id="provenance">') :]
    assert provenance.count("naiveSyncBN") == 3 and "nearly all cells" not in provenance
    assert " of 3 rows)" not in text


def test_two_thousand_rows_are_less_than_15_mb(many: Rendered, tmp_path: Path) -> None:
    """By what each further row adds; the whole page takes half a minute."""
    more = html.render(made(tmp_path, 190))
    each = (len(more.encode()) - len(many.text.encode())) / 40
    assert len(many.text.encode()) + 1850 * each < 15e6
    drawn = [sum(map(len, re.findall(r"<svg.*?</svg>", text, re.DOTALL))) for text in (many.text, more)]
    assert drawn[0] == pytest.approx(drawn[1], rel=0.01)


def test_thousands_of_trials_of_one_row_are_drawn_by_evenly_spaced_ones(tmp_path: Path) -> None:
    report = made(tmp_path, 1, trials=150, lines=250)
    with file_reads(tmp_path, "metrics.json") as reads:
        (loss,) = [plot for plot in all_plots(report) if plot.section == "finetuning"]
    assert len(reads) == style.MAX_LINES and f"({style.MAX_LINES} of 150 trials)" in loss.title
    axes = loss.draw().axes[0]
    assert sum(len(line.get_xdata()) for line in axes.lines) <= style.MAX_POINTS * 1.1
    assert {line.get_xdata()[-1] for line in axes.lines} == {249}


class TestLargeMetricsFiles:
    """Read in pieces: the memory does not grow with the file."""

    def lines(self, count: int) -> Iterator[str]:
        for i in range(count):
            yield json.dumps({"iteration": i, "total_loss": 1.0, "bbox/AP": float(i), "padding": "x" * 300}) + "\n"

    @pytest.mark.parametrize("rare", [[], ["bbox/AP"]])
    def test_memory_is_bounded(self, tmp_path: Path, rare: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(curves, "MAX_RARE", 100)
        path = tmp_path / "metrics.json"
        with open(path, "w") as stream:
            stream.writelines(self.lines(30_000))
        assert path.stat().st_size > 10 * MIB
        tracemalloc.start()
        found = read_series(path, ["total_loss"], rare)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1.5 * MIB
        assert found["total_loss"][-1] == (29_999, 1.0)
        if rare:
            ap = found["bbox/AP"]
            assert len(ap) <= 101 and ap[0][0] < 300 and ap[-1] == (29_999, 29_999.0)
            assert max(b - a for (a, _), (b, _) in itertools.pairwise(ap)) == 300

    def test_a_file_without_line_breaks_is_not_held_whole(self, tmp_path: Path) -> None:
        (tmp_path / "metrics.json").write_bytes(b"x" * (8 * MIB))
        tracemalloc.start()
        assert read_series(tmp_path / "metrics.json", ["loss"]) == {}
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3.5 * MIB


def test_the_facts_of_a_trial_are_compared_once(
    many: Rendered, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A cell of n trials takes n steps, not n²."""
    report = made(tmp_path, 1, trials=60)
    compared = []
    trial_type = type(report.trials[0])
    monkeypatch.setattr(trial_type, "__eq__", lambda self, other: compared.append(1) or self is other)
    facts.cell_details(report.tables[0], report)
    assert len(compared) <= 60


@pytest.mark.parametrize("is_log", [True, False])
def test_an_imported_file_is_read_in_pieces(tmp_path: Path, is_log: bool) -> None:
    noise = "[07/01 12:00:00] d2.utils.events: eta: 1:00:00 iter: 19 total_loss: 2.9 " + "x" * 300 + "\n"
    blocks = ["copypaste: Task: bbox\n", "copypaste: AP,AP50,AP75\n", "copypaste: {0}.5,70.0,50.0\n"]
    lines = blocks if is_log else ['{{"iteration": {0}, "bbox/AP": {0}.5, "bbox/AP50": 70.0, "bbox/AP75": 50.0}}\n']
    with open(tmp_path / "imported", "w") as stream:
        for i in range(30):
            stream.writelines([*(line.format(i) for line in lines), *[noise] * 1000])
    tracemalloc.start()
    trial = imported_trial(tmp_path / "imported", "row", "voc07")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert trial.metrics["bbox"] == {"AP": 29.5, "AP50": 70.0, "AP75": 50.0}
    assert peak < 2 * MIB
