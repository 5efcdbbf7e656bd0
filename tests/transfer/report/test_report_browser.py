"""The page in headless Chromium: sorting, the way to a trial by mouse and by keyboard, a phone, paper, both themes.

No text is cut and nothing overlaps, with few trials and many, on a desk and on a phone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.needs import missing
from tests.transfer.report import browser as chromium
from tests.transfer.report.browser import Browser
from tests.transfer.report.made_results import FIVE, Run, diverged, put, result, whole
from transfer.report.collect import collect
from transfer.report.render import html
from transfer.report.tables import Options, build_report

pytestmark = pytest.mark.slow
ROWS = "[...document.querySelectorAll('#table-table5 tbody th')].map(head => head.textContent.trim())"
GIVEN = ["scratch", "ImageNet supervised", "SimSiam, base"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    report = build_report(collect([whole(folder / "run")]), Options(published="rows"))
    (folder / "table.html").write_text(html.render(report))
    return (folder / "table.html").as_uri()


@pytest.fixture
def browser(address: str, tmp_path: Path) -> Iterator[Browser]:
    """The page, opened; afterwards: no console error, and no request but for the page."""
    program = chromium.find()
    if program is None:
        missing("chromium is not installed: apt-get install chromium")
    with Browser(program, tmp_path / "profile") as made:
        made.see(1400)
        made.open(address)
        yield made
        made.js("1")
        assert made.errors == []
        requested = {request.partition("#")[0] for request in made.requests if not request.startswith("data:")}
        assert requested == {address, *made.visited}


def own_rows(browser: Browser) -> list[str]:
    return [row for row in browser.js(ROWS) if "(published)" not in row]


def test_a_columns_head_sorts_down_up_and_back(browser: Browser) -> None:
    head = 'th[data-key="voc0712.bbox.AP"]'
    states = []
    for _ in range(3):
        browser.click(f"{head} button")
        states.append((browser.js(f"document.querySelector('{head}').ariaSort"), own_rows(browser)))
    assert states == [
        ("descending", ["ImageNet supervised", "scratch", "SimSiam, base"]),
        ("ascending", ["scratch", "ImageNet supervised", "SimSiam, base"]),
        ("none", GIVEN),
    ]


def test_a_click_on_a_figure_opens_its_trials(browser: Browser) -> None:
    detail = "document.getElementById('cell-table5-simsiam-voc07-bbox')"
    assert browser.js(f"{detail}.open") is False
    browser.click('a[href="#cell-table5-simsiam-voc07-bbox"]')
    assert browser.js(f"{detail}.open") is True
    assert browser.js("document.activeElement.tagName") == "SUMMARY"
    assert browser.js(f"{detail}.getBoundingClientRect().top") < 900
    row = browser.js("document.getElementById('cell-table5-simsiam-voc07-bbox-4').innerText")
    assert re.search(r"\b4\b.*\bdone\b.*AP50 75\.7, AP 47\.2, AP75 50\.1.*0\.02", row, re.DOTALL)
    assert "b" * 64 in browser.js(f"{detail}.innerText")
    browser.js(f"{detail}.open = false")
    browser.click('a[href="#cell-table5-simsiam-voc07-bbox"]')
    assert browser.js(f"{detail}.open") is True, "the same link again"


def test_the_keyboard_alone_is_enough(browser: Browser) -> None:
    browser.js("document.querySelector('th[data-key=\"voc07.bbox.AP\"] button').focus()")
    browser.press("Enter")
    assert own_rows(browser) == ["SimSiam, base", "ImageNet supervised", "scratch"]
    reached = []
    for _ in range(40):
        browser.press("Tab")
        reached.append(browser.js("document.activeElement.getAttribute('href')"))
        if reached[-1] == "#cell-table5-simsiam-voc07-bbox":
            break
    browser.press("Enter")
    assert browser.js("document.getElementById('cell-table5-simsiam-voc07-bbox').open") is True, reached


def test_a_link_from_outside_opens_its_cell(browser: Browser, address: str) -> None:
    browser.open("about:blank")
    browser.open(f"{address}#cell-table5-supervised-voc0712-bbox-2")
    assert browser.js("document.getElementById('cell-table5-supervised-voc0712-bbox').open") is True
    browser.requests = [request for request in browser.requests if request != "about:blank"]


def test_a_phone_shows_everything_without_scrolling_sideways(browser: Browser, address: str) -> None:
    browser.see(390)
    browser.open(address)
    assert browser.js("document.documentElement.scrollWidth") <= 390
    table = browser.js("document.querySelector('#table-table5').getBoundingClientRect().width")
    assert table <= 390, "the results are cards, not a table to scroll"
    browser.js(
        "(s => { s.value = 'voc07.bbox.AP'; s.dispatchEvent(new Event('change')); })(document.querySelector('select'))"
    )
    assert own_rows(browser)[0] == "SimSiam, base"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_themes_have_contrast(browser: Browser, scheme: str) -> None:
    """WCAG AA asks for 4.5 between text and ground, 3 between a plot's lines and ground."""
    browser.see(1400, scheme)
    ground = _rgb(browser.js("getComputedStyle(document.body).backgroundColor"))
    assert (sum(ground) > 600) == (scheme == "light")
    for name, least in [("--ink", 4.5), ("--soft", 4.5), ("--link", 4.5), *((f"--series-{i}", 3.0) for i in range(8))]:
        probe = "(e => { e.style.color = 'var(%s)'; document.body.append(e); return getComputedStyle(e).color; })"
        colour = _rgb(browser.js(probe % name + "(document.createElement('i'))"))
        assert _contrast(colour, ground) >= least, (name, colour)


def test_it_prints_on_paper(browser: Browser) -> None:
    assert browser.printed().startswith(b"%PDF")
    browser.see(1000, "light", "print")
    assert browser.js("getComputedStyle(document.querySelector('nav')).display") == "none"


CUT_OR_OVERLAPPING = """(() => {
  const found = [];
  const seen = (box) => box.width > 0.5 && box.height > 0.5;
  for (const one of document.querySelectorAll("body *:not(svg *, option, textarea)")) {
    const clips = getComputedStyle(one).overflowX !== "visible" && !one.classList.contains("scroll");
    if (clips && seen(one.getBoundingClientRect()) && one.scrollWidth > one.clientWidth + 1)
      found.push(["cut", one.outerHTML.slice(0, 90)]);
  }
  for (const svg of document.querySelectorAll("svg")) {
    const edge = svg.getBoundingClientRect();
    for (const text of svg.querySelectorAll("text")) {
      const box = text.getBoundingClientRect();
      const inside = [box.left - edge.left, edge.right - box.right, box.top - edge.top, edge.bottom - box.bottom];
      if (Math.min(...inside) < -1)
        found.push(["outside of its plot", text.textContent]);
    }
  }
  const boxes = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    const of = node.parentElement;
    if (!node.data.trim() || of.closest("script, style, .skip, option, textarea, desc, title")) continue;
    if (!of.checkVisibility()) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) if (seen(box)) boxes.push([box, node.data.trim()]);
  }
  boxes.sort((a, b) => a[0].top - b[0].top);
  boxes.forEach(([one, text], index) => {
    for (let k = index + 1; k < boxes.length && boxes[k][0].top < one.bottom - 4; k++) {
      const wide = Math.min(one.right, boxes[k][0].right) - Math.max(one.left, boxes[k][0].left);
      const high = Math.min(one.bottom, boxes[k][0].bottom) - boxes[k][0].top;
      if (wide > 2 && high > 4) found.push(["overlap", text, boxes[k][1]]);
    }
  });
  return found;
})()"""


def write_page(folder: Path, **options: object) -> Path:
    """The page of the results in `folder`/run."""
    report = build_report(collect([folder / "run"]), Options(**options))
    (folder / "page.html").write_text(html.render(report))
    return folder / "page.html"


def _put_five(folder: Path) -> dict[str, object]:
    """Five trials a row, with predictions, to stand beside the published rows."""
    rows = [("scratch", "scratch", "scratch"), ("supervised", "ImageNet supervised", "supervised")]
    run = Run(folder, [*rows, ("mine", "SimSiam on everything that we had in March", "simsiam_base")], {"voc07": 5})
    for row, mean in (("scratch", 17.0), ("supervised", 42.5), ("mine", 47.1)):
        for seed, offset in enumerate(FIVE, 1):
            trial = run.finetune(row, "voc07", seed, result(row, "voc07", seed, [75.0, mean + offset, 50.0]))
        (trial / "predictions").mkdir()
        for name in ("000001", "000004"):
            Image.new("RGB", (640, 400), "teal").save(trial / "predictions" / f"{name}.jpg")
    run.save()
    return {"published": "rows"}


def _put_two(folder: Path) -> dict[str, object]:
    for row, values in (("scratch", (22.0, 16.0)), ("simsiam", (13.0, 19.5))):
        for seed, value in enumerate(values, 1):
            put(folder / f"{row}{seed}", result(row, "voc07", seed, [60.0, value, 2.0], toy=True))
    return {"published": "rows", "allow_toy": True}


def _put_one(folder: Path) -> dict[str, object]:
    put(folder / "a", result("moco_v2_800ep", "voc07", 1, [77.4, 48.9, 52.5]))
    return {}


def _put_own(folder: Path) -> dict[str, object]:
    rows = {"scratch": 31.0, "supervised": 58.0, "simsiam": 60.0}
    run = Run(
        folder, [(row, f"{row}, 40,000 slides of our own hospital, first half", None) for row in rows], {"blood": 3}
    )
    for row, mean in rows.items():
        for seed, offset in enumerate(FIVE[:3], 1):
            run.finetune(row, "blood", seed, result(row, "blood", seed, [86.0, mean + offset, 66.0]))
    run.finetune("simsiam", "blood", 4, diverged("simsiam", "blood", 4))
    run.save()
    return {}


def _put_failed(folder: Path) -> dict[str, object]:
    whole(folder)
    return {"published": "rows"}


@pytest.mark.parametrize("put_results", [_put_five, _put_two, _put_one, _put_own, _put_failed])
def test_no_text_is_cut_and_nothing_overlaps(browser: Browser, tmp_path: Path, put_results: Callable) -> None:
    options = put_results(tmp_path / "run")
    page = write_page(tmp_path, **options)
    assert str(tmp_path) not in page.read_text() and f"{Path.home()}/" not in page.read_text()
    for width, scheme in ((1400, "light"), (420, "dark")):
        browser.see(width, scheme)
        browser.visit(page)
        assert browser.js("document.documentElement.scrollWidth") <= width
        browser.js("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        assert browser.js(CUT_OR_OVERLAPPING) == [], f"{width} pixels"


def test_a_picture_is_enlarged_by_mouse_and_by_keyboard(browser: Browser, tmp_path: Path) -> None:
    browser.visit(write_page(tmp_path, **_put_five(tmp_path / "run")))
    caption = "document.querySelector('dialog[open] figcaption')?.textContent"
    browser.click(".photos button")
    assert browser.js(caption) == "000001: scratch on voc07"
    browser.press("ArrowRight")
    assert browser.js(caption) == "000001: ImageNet supervised on voc07"
    browser.press("Escape")
    assert browser.js(caption) is None
    browser.js("document.querySelectorAll('.photos button')[3].focus()")
    browser.press("Enter")
    assert browser.js(caption) == "000004: scratch on voc07"


def test_tables_and_commands_are_copied(browser: Browser) -> None:
    browser.js("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    browser.click('button[data-copy="copy-1"]')
    assert browser.js("window.copied").startswith("% \\usepackage{booktabs")
    assert browser.js("document.querySelector('button[data-copy=\"copy-1\"]').textContent") == "copied"
    browser.click('button[data-copy="copy-3"]')
    assert browser.js("window.copied").startswith("row,task,metric,seed,value,low,high\nscratch,voc07,bbox/AP50,1,")
    browser.js("document.getElementById('cell-table5-simsiam-voc07-bbox').open = true")
    browser.click("#cell-table5-simsiam-voc07-bbox button[data-copy]")
    assert browser.js("window.copied").startswith("python tools/transfer.py --config-file configs/transfer/voc07.yaml")


def _rgb(text: str) -> tuple[float, ...]:
    return tuple(float(v) for v in re.findall(r"[\d.]+", text)[:3])


def _contrast(one: tuple[float, ...], two: tuple[float, ...]) -> float:
    light, dark = sorted((_luminance(one), _luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: tuple[float, ...]) -> float:
    parts = [c / 255 / 12.92 if c / 255 <= 0.03928 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
