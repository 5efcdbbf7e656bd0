"""The page in headless Chromium: sorting, the way to a trial by mouse and by keyboard, a phone, paper, both themes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.needs import missing
from tests.transfer.report import browser as chromium
from tests.transfer.report.browser import Browser
from tests.transfer.report.made_results import whole
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
        assert {request.partition("#")[0] for request in made.requests if not request.startswith("data:")} == {address}


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


def _rgb(text: str) -> tuple[float, ...]:
    return tuple(float(v) for v in re.findall(r"[\d.]+", text)[:3])


def _contrast(one: tuple[float, ...], two: tuple[float, ...]) -> float:
    light, dark = sorted((_luminance(one), _luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: tuple[float, ...]) -> float:
    parts = [c / 255 / 12.92 if c / 255 <= 0.03928 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
