"""The HTML page as text: self-contained, well-formed, accessible, and every link leads somewhere."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from tests.transfer.report.made_results import Run, diverged, put, result, whole
from transfer.report.collect import collect
from transfer.report.render import html
from transfer.report.render.headline import headline
from transfer.report.render.pictures import predictions
from transfer.report.tables import Options, build_report

VOID = {"meta", "link", "img", "br", "hr", "input", "use", "path"}


class Page(HTMLParser):
    """Every element with its attributes, and a check that elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open, tag
        assert self.open.pop() == tag

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def render(*folders: Path, **options: object) -> str:
    return html.render(build_report(collect(folders), Options(**options)))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = whole(tmp_path_factory.mktemp("whole"))
    pictures = folder / "jobs" / "finetune.simsiam.voc07.s1-01234567" / "predictions"
    pictures.mkdir()
    Image.new("RGB", (1000, 500), "orange").save(pictures / "000001.png")
    (pictures / "broken.png").write_bytes(b"no picture")
    return render(folder)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_it_is_one_file(text: str, page: Page) -> None:
    assert page.open == []
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            address = attributes.get(name) or "#"
            assert address.startswith(("#", "data:")), f"{tag} {name}={address}"
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_ids_are_unique_and_links_and_labels_have_targets(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name in ("href", "xlink:href"):
            if (attributes.get(name) or "").startswith("#"):
                assert attributes[name][1:] in ids, attributes[name]  # type: ignore[index]
        for name in ("aria-labelledby", "for"):
            for word in (attributes.get(name) or "").split():
                assert word in ids, word


def test_headings_are_in_order_and_pictures_have_alternative_texts(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(picture.get("alt") for picture in page.of("img"))
    assert page.of("svg")
    assert all(picture.get("role") == "img" and picture.get("aria-labelledby") for picture in page.of("svg"))
    assert page.of("html") == [{"lang": "en"}]
    assert all(head.get("scope") for head in page.of("th"))


def test_every_mean_leads_to_its_trials(page: Page) -> None:
    links = [a["href"] for a in page.of("a") if (a.get("href") or "").startswith("#cell-")]
    assert links.count("#cell-table5-simsiam-voc07-bbox") == 3
    ids = [attributes.get("id") for attributes in page.of("tr")]
    assert {f"cell-table5-simsiam-voc07-bbox-{i}" for i in range(1, 6)} <= set(ids)


def test_provenance_is_on_the_page(text: str) -> None:
    start = text.index('<details id="cell-table5-simsiam-voc07-bbox"')
    detail = text[start : text.index("</details>", start)]
    for fact in (
        "b" * 64,
        "c" * 64,
        "simsiam.pkl",
        "simsiam_r50_200ep",
        "naiveSyncBN",
        "0123456789abcdef",
        "265/265 exact",
    ):
        assert fact in detail, fact
    for seed in range(1, 6):
        assert f'<th scope="row">{seed}</th>' in detail


def test_predictions_are_reduced_and_a_broken_one_is_left_out(page: Page) -> None:
    (picture,) = page.of("img")
    assert "Image 000001" in (picture["alt"] or "")
    data = base64.b64decode((picture["src"] or "").partition("base64,")[2])
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (640, 320)


def test_gpu_hours_are_counted_and_unknown_ones_are_called_unknown(text: str) -> None:
    cost = text[text.index('<h2 id="cost">') : text.index('<h2 id="environment">')]
    assert re.search(r"scratch on voc07</th><td>5</td><td>8 × Example GPU</td><td>5\.25\sh</td><td>42\sh<", cost)
    assert re.search(r"pre-training SimSiam, base</th>.*<td>unknown</td>", cost)


def test_attempts_are_counted_where_a_run_had_several(tmp_path: Path) -> None:
    run = Run(tmp_path, [("scratch", "scratch", None)], {"voc07": 2})
    at = [f"2026-01-01T0{hour}:00:00+00:00" for hour in range(4)]
    earlier = [{"started": at[0], "ended": at[1], "status": "requeued", "gpus": 8}]
    state = {"status": "done", "started": at[2], "ended": at[3], "gpus": 8, "earlier": earlier}
    for seed in (1, 2):
        run.finetune("scratch", "voc07", seed, result("scratch", "voc07", seed, [1.0, 2.0, 3.0]), **state)
    found = render(run.save())
    cost = found[found.index('<h2 id="cost">') :]
    assert '<th scope="col">attempts</th>' in cost
    assert re.search(r"scratch on voc07</th><td>2</td><td>4</td><td>8 × Example GPU</td><td>4\sh</td><td>32\sh<", cost)


def test_skipped_files_are_named(text: str) -> None:
    skipped = text[text.index('<h2 id="skipped">') :]
    assert "finetune.scratch.voc0712.s5-01234567/result.json" in skipped


def test_what_comes_from_files_cannot_become_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x>"
    run = Run(tmp_path, [("a", evil, None)], {"voc07": 1})
    run.graph["experiment"] = evil
    run.finetune("a", "voc07", 1, result("a", "voc07", 1, [1.0, 2.0, 3.0], weights__path=evil, settings__norm=evil))
    text = render(run.save())
    page = Page(text)
    assert page.of("img") == []
    assert len(page.of("script")) == 1


def test_it_says_so_when_all_is_toy(tmp_path: Path) -> None:
    put(tmp_path, result("a", "voc07", 1, [1.0, 2.0, 3.0], toy=True))
    assert 'class="notice">All results are toy' in render(tmp_path)


def test_it_says_so_when_a_toy_stands_beside_published_rows(tmp_path: Path) -> None:
    put(tmp_path / "a", result("a", "voc07", 1, [1.0, 2.0, 3.0], toy=True))
    put(tmp_path / "b", result("b", "voc07", 1, [1.0, 2.0, 3.0]))
    assert 'class="notice">1 of 2 results are toy' in render(tmp_path, allow_toy=True, published="rows")


def sentence(*folders: Path, **options: object) -> str:
    return headline(build_report(collect(folders), Options(**options)))


def test_the_first_sentence_says_difference_n_and_p(tmp_path: Path) -> None:
    said = sentence(whole(tmp_path / "whole"))
    assert said.startswith("SimSiam, base has AP 47.1 ± 0.2 on VOC 07 detection (the highest of 3 rows, n = 5), +4.6 ")
    assert "[+4.4, +4.8] against ImageNet supervised (n = 5; p <0.001)" in said and "published is 47.0 (+0.1)" in said
    assert said.endswith("Of 12 cells, 1 incomplete, 1 diverged, 1 mixed.")


@pytest.mark.parametrize(
    ("scratch", "mine", "said"),
    [
        (
            [10.0, 20.0],
            [14.0, 18.0],
            "[-38.8, +40.8] against scratch (n = 2; p 0.877, no evidence of a difference)",
        ),
        ([10.0], [14.0], "+4.0 against scratch (n = 1; no test possible)"),
        (
            [20.0, 24.0],
            [10.0, 11.0],
            "AP 22.0 ± 2.8 on own detection (the highest of 2 rows, n = 2), +11.5 [-8.7, +31.7] against mine",
        ),
        ([20.0], [20.0], "one of 2 equal highest of 2 rows"),
        ([], [20.0], "mine has AP 20.0 on own detection (n = 1)."),
    ],
)
def test_the_first_sentence_says_no_more_than_the_trials_do(
    tmp_path: Path, scratch: list[float], mine: list[float], said: str
) -> None:
    for row, values in (("scratch", scratch), ("mine", mine)):
        for seed, value in enumerate(values, 1):
            put(tmp_path / f"{row}{seed}", result(row, "own", seed, [50.0, value, 10.0]))
    assert said in sentence(tmp_path)


def test_without_a_mean_the_first_sentence_claims_nothing(tmp_path: Path) -> None:
    put(tmp_path / "toy", result("mine", "voc07", 1, [1.0, 2.0, 3.0], toy=True))
    assert sentence(tmp_path / "toy").startswith("Toy run: mine has AP 2.0")
    put(tmp_path / "nan", diverged("mine", "voc07", 1))
    assert sentence(tmp_path / "nan") == "No trial has a result that counts."


def test_paths_are_relative_and_hosts_left_out_unless_requested(tmp_path: Path) -> None:
    home = "/home/somebody/secret folder"
    run = Run(tmp_path / "run", [("mine", "mine", None)], {"voc07": 2})
    changes = {
        "weights__path": f"{home}/mine.pkl",
        "config__file": "/home/somebody/configs/own.yaml",
        "config__overrides": ["TRANSFER.DATA_ROOT", "/mnt/store/voc"],
        "environment__host": "node-17",
    }
    run.finetune("mine", "voc07", 1, result("mine", "voc07", 1, [1.0, 2.0, 3.0], **changes))
    run.finetune("mine", "voc07", 2, None, status="failed", error=f"OSError: node-17 cannot read '{home}/x.jpg'")
    folder = run.save()
    shown = render(folder, command=f"python tools/table.py {folder} --output {tmp_path}/t.html")
    for private in (str(tmp_path), "somebody", "/mnt", "node-17"):
        assert private not in shown, private
    for kept in ("run/jobs/finetune.mine.voc07.s1-01234567", "…/mine.pkl", "…/own.yaml", "TRANSFER.DATA_ROOT …/voc"):
        assert kept in shown, kept
    shown = render(folder, show_machine=True)
    for private in (str(folder), f"{home}/mine.pkl", "node-17"):
        assert private in shown, private


def test_commands_reproduce_the_trials(text: str) -> None:
    command = "python tools/transfer.py --config-file configs/transfer/voc07.yaml --weights simsiam.pkl --seed 2"
    assert f"{command} --output runs/again/simsiam.voc07.s2 --num-gpus 8</code>" in text


def test_all_rows_show_the_same_images_a_line_each(tmp_path: Path) -> None:
    run = Run(tmp_path, [(row, f"<{row}>", None) for row in ("b", "a")], {"voc07": 1})
    for row, names in (("a", "132"), ("b", "3124")):
        folder = run.finetune(row, "voc07", 1, result(row, "voc07", 1, [1.0, 2.0, 3.0])) / "predictions"
        folder.mkdir()
        for name in names:
            Image.new("RGB", (64, 32), "orange").save(folder / f"{name}.jpg")
    (grid,) = predictions(build_report(collect([run.save()]), Options()))
    assert (grid.task, grid.rows) == ("voc07", ["<b>", "<a>"])
    assert [name for name, _ in grid.lines] == ["1", "2", "3"]
    assert all(picture for _, line in grid.lines for picture in line)


def test_a_page_of_published_rows_alone(tmp_path: Path) -> None:
    page = Page(render(published="rows"))
    assert len([tr for tr in page.of("tr") if tr.get("class") == "published"]) == 8
