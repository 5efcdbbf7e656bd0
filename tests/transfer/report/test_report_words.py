"""Labels and class names are data: none is a tag, a formula, a macro or a command to a terminal."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.transfer.report.made_results import Run, pretrain_lines, pretrain_result, result
from tools import table
from transfer.report.collect import collect
from transfer.report.figures import write_all
from transfer.report.render.csv import _without_formula
from transfer.report.render.latex import escape
from transfer.report.tables import Options, build_report

LABELS = {
    "scratch": '=HYPERLINK("http://x")',
    "supervised": "_100 % of $a_1 and $b^{2",
    "simsiam": "<script>alert(1)</script> \x1b]0;owned\x07 [x] *\nsecond",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Run(
        tmp_path_factory.mktemp("words") / "$x$ <b>",
        [(row, label, None) for row, label in LABELS.items()],
        {"voc07": 2},
    )
    per_class = {"$\\foo{": 29.0, "<i>cat\x1b[31m": 30.0, "@x": 31.0}  # the mean is the AP
    for row in LABELS:
        for seed in (1, 2):
            content = result(row, "voc07", seed, [50.0 + seed, 30.0, 20.0])
            content["metrics"]["bbox"]["per_class"] = per_class
            made.finetune(row, "voc07", seed, content)
    made.pretrain("supervised", pretrain_result(), pretrain_lines(20))
    return made.save()


@pytest.mark.parametrize("kind", ["md", "csv", "latex", "html", "json"])
def test_no_control_character_reaches_a_page(run: Path, kind: str) -> None:
    text = table.rendered(table.parser().parse_args([str(run)]), kind)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)
    if kind != "json":
        assert "\\x1b" in text or "textbackslash{}x1b" in text
    if kind == "html":
        assert "<script>alert" not in text and "<i>cat" not in text and "<b>" not in text
    if kind == "csv":
        rows = list(csv.reader(io.StringIO(text)))
        cells = [cell for row in rows for cell in row if cell[:1] in ("=", "@")]
        assert not cells and "'=HYPERLINK" in text
    if kind == "md":
        assert "\nsecond" not in text


@pytest.mark.parametrize(
    ("cell", "shown"), [("=1+1", "'=1+1"), ("-0.3", "-0.3"), ("+1.0", "+1.0"), ("-", "-"), ("@x", "'@x"), ("-x", "'-x")]
)
def test_a_formula_is_text_and_a_number_keeps_its_sign(cell: str, shown: str) -> None:
    assert _without_formula(cell) == shown


def test_latex_options_and_line_breaks_are_text() -> None:
    assert escape("[a]*_$%\n") == r"{[}a]{*}\_\$\% "


def test_plots_show_dollars_and_underscores(run: Path, tmp_path: Path) -> None:
    written = write_all(build_report(collect([run]), Options()), tmp_path)
    pages = {file.name: ElementTree.parse(file) for file in written if file.suffix == ".svg"}
    assert pages
    texts = [
        "".join(node.itertext()) for page in pages.values() for node in page.iter("{http://www.w3.org/2000/svg}text")
    ]
    assert any("_100 % of $a_1 and $b^{2" in text for text in texts)
    assert any("$\\foo{" in text for text in texts)
