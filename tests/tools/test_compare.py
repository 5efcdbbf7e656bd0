"""tools/compare.py: a planted difference is found where it is and nowhere else; what does not compare is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ssl_transfer.config import flatten
from ssl_transfer.console import call_main
from ssl_transfer.formats.detections import DETECTIONS_FILE, Detections
from tests.transfer.comparison.made_detections import Found, Object, detections, draw, split
from tests.transfer.report import browser
from tests.transfer.report.made_results import Run, put, result
from tools.compare import main
from transfer.report.cells import printed
from transfer.resampling.weighted_ap import average_precision, per_class
from transfer.tasks.task import Dataset, TaskSettings, ground_truth, read_split

IMAGES, CAT, DOG = 40, 0, 1
SMALL, MEDIUM = (10.0, 10.0, 40.0, 40.0), (50.0, 50.0, 95.0, 95.0)


def config(root: Path) -> dict[str, Any]:
    """A trial's resolved config."""
    entry = {"made": {"LAYOUT": "coco", "FOLDER": "images", "ANNOTATIONS": "made.json"}}
    transfer = {"TASK": "made", "DATA_ROOT": str(root), "CLASSES": ["cat", "dog"], "CHECK_COUNTS": False}
    return {"TRANSFER": {**transfer, "SPLITS": entry}, "DATASETS": {"TRAIN": ["made"], "TEST": ["made"]}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A split on disk: a small cat and a dog of medium size on each image."""
    root = tmp_path_factory.mktemp("data")
    objects: list[Object] = [(i, label, box) for i in range(IMAGES) for label, box in ((CAT, SMALL), (DOG, MEDIUM))]
    dataset = split(objects, folder=root / "images")
    draw(dataset)
    (root / "made.json").write_text(json.dumps(ground_truth(dataset)))
    settings = TaskSettings.of(flatten(config(root)))
    return read_split(settings.splits[-1], settings.classes, False)


def found(dataset: Dataset, dogs: float, seed: int = 0) -> Detections:
    """Nine of ten cats and this share of the dogs are found; equal draws for equal seeds, whatever the share."""
    random = np.random.default_rng(seed)
    rows: list[Found] = []
    for image in range(IMAGES):
        for label, box, share in ((CAT, SMALL, 0.9), (DOG, MEDIUM, dogs)):
            seen, false, *scores = random.random(4)
            rows += [(image, label, 0.5 + scores[0] / 2, box)] if seen < share else []
            rows += [(image, label, 0.7 * scores[1], (1.0, 1.0, 9.0, 9.0))] if false < 0.3 else []
    return detections(dataset, rows)


def trial(folder: Path, dataset: Dataset, kept: Detections, row: str, **changes: Any) -> Path:
    """A trial's folder."""
    point = average_precision(kept.matches["bbox"], len(kept.classes), kept.metric)
    values = [point[name] for name in ("AP50", "AP", "AP75")]
    folder.mkdir(parents=True)
    record = {"file": DETECTIONS_FILE, "sha256": kept.write(folder / DETECTIONS_FILE)}
    content = result(row, "made", changes.pop("seed", 1), values, metrics__bbox__per_class=None, **changes)
    put(folder, {**content, "detections": record})
    (folder / "config.yaml").write_text(yaml.safe_dump(config(dataset.split.folder.parent)))
    return folder


@pytest.fixture(scope="module")
def pair(made: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two trials that differ in dogs alone."""
    root = tmp_path_factory.mktemp("runs")
    shares = {"simsiam": 0.9, "supervised": 0.4}
    a, b = (str(trial(root / row, made, found(made, share), row)) for row, share in shares.items())
    return a, b


def as_json(tmp_path: Path, *words: str) -> dict[str, Any]:
    file = tmp_path / "out" / "comparison.json"
    assert call_main(main, [*words, "--output", str(file)]) == 0
    return json.loads(file.read_text())


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in rows}


@pytest.mark.numeric
def test_a_planted_difference_is_found_where_it_is_and_nowhere_else(pair: tuple[str, str], tmp_path: Path) -> None:
    answer = as_json(tmp_path, *pair)
    parts = answer["differences"]["bbox"]
    assert [row["name"] for row in parts["classes"]] == ["dog", "cat"], "the largest difference first"
    for name, differs in {"dog": True, "cat": False}.items():
        verdict = by_name(parts["classes"])[name]["verdict"]
        assert (verdict["low"] > 0) == differs and (verdict["low"] <= 0 <= verdict["high"]) != differs
    sizes = by_name(parts["sizes"])
    assert sizes["medium"]["verdict"]["low"] > 0 and sizes["large"] == {
        **dict.fromkeys(("ours", "theirs", "verdict")),
        "name": "large",
    }
    assert sizes["small"]["ours"] == sizes["small"]["theirs"]
    widths = [one["verdict"]["high"] - one["verdict"]["low"] for one in (sizes["medium"], parts["metrics"][0])]
    assert widths[0] > 1.5 * widths[1], "the mean over two classes varies less than the dogs alone"
    dog, cat = (by_name(parts["classes"])[name]["verdict"] for name in ("dog", "cat"))
    assert (dog["p_holm"], cat["p_holm"]) == (2 * dog["p"], cat["p"]) and parts["metrics"][0]["verdict"][
        "p_holm"
    ] is None
    gained = [errors["missed"]["gain"] for errors in answer["errors"]]
    assert gained[1] > gained[0] + 10, "what the second trial lacks is missed dogs"
    assert answer["differing_images"] and not answer["note"]
    said = [re.findall(r"simsiam is above supervised by .* (AP\d*) \(boxes\)", text) for text in answer["sentences"]]
    assert said == [["AP"], ["AP50"], ["AP75"]] and answer["headline"] == answer["sentences"][0]


@pytest.mark.numeric
def test_json_and_markdown_have_the_digits_of_the_metric(
    made: Dataset, pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = by_name(as_json(tmp_path, *pair)["differences"]["bbox"]["metrics"])
    capsys.readouterr()
    assert call_main(main, [*pair]) == 0
    text = capsys.readouterr().out
    for side, share in {"ours": 0.9, "theirs": 0.4}.items():
        matches = found(made, share).matches["bbox"]
        point = average_precision(matches, 2, "coco")
        assert {name: row[side] for name, row in metrics.items()} == point
        dog = per_class(matches, 2, "coco")["AP"][DOG]
        for name, value in {**point, "dog": dog}.items():
            (line,) = (line for line in text.splitlines() if line.startswith(f"| {name} "))
            assert printed(float(value)) in line.split(" | ")[1 + (side == "theirs")]


def test_all_trials_of_two_rows_are_compared(made: Dataset, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", [("a", "Row A", None), ("b", "Row B", None)], {"made": 2})
    for row, share in {"a": 0.9, "b": 0.4}.items():
        for seed in (1, 2):
            trial(run.finetune(row, "made", seed, None), made, found(made, share, seed), row, seed=seed)
    folder = run.save()
    answer = as_json(tmp_path, f"{folder}:a", f"{folder}:b")
    assert [(side["label"], len(side["trials"])) for side in answer["sides"]] == [("Row A", 2), ("Row B", 2)]
    (_, both), ap = answer["sides"], by_name(answer["differences"]["bbox"]["metrics"])["AP"]
    points = [average_precision(found(made, 0.4, seed).matches["bbox"], 2, "coco")["AP"] for seed in (1, 2)]
    assert ap["theirs"] == pytest.approx(np.mean(points)) and ap["verdict"]["seeds"] and both["trials"][1]["seed"] == 2


def test_a_foreign_file_of_the_same_detections_has_the_same_numbers(
    made: Dataset, pair: tuple[str, str], tmp_path: Path
) -> None:
    kept = found(made, 0.4)
    boxes = np.concatenate([kept.boxes[:, :2], kept.boxes[:, 2:] - kept.boxes[:, :2]], axis=1).tolist()
    rows = zip(kept.image.tolist(), kept.label.tolist(), kept.score.tolist(), boxes, strict=True)
    entries = [{"image_id": i, "category_id": label + 1, "score": s, "bbox": box} for i, label, s, box in rows]
    (tmp_path / "theirs.json").write_text(json.dumps(entries))
    answers = [as_json(tmp_path, pair[0], other) for other in (str(tmp_path / "theirs.json"), pair[1])]
    assert answers[0]["sides"][1]["label"] == "theirs"
    for key in ("differences", "errors", "precision", "differing_images"):
        assert answers[0][key] == answers[1][key]


def test_the_page_is_one_file_without_paths_of_the_machine(pair: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    assert call_main(main, [*pair, "--images", "3", "--output", str(file)]) == 0
    text = file.read_text()
    assert text.count("data:image/jpeg;base64,") == 2 * 3 and text.count("<svg") == 1 + 3 + 1
    assert not re.search(r"""(?:src|href)="(?!data:|#)""", text)
    assert "simsiam is above supervised by" in text and str(tmp_path.parent) not in text
    assert call_main(main, [*pair, "--show-machine", "--output", str(file)]) == 0
    assert pair[0] in file.read_text()


def test_without_the_data_set_all_but_errors_and_images(
    made: Dataset, pair: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for row in ("a", "b"):
        shutil.copytree(pair[0], row)
        away = yaml.safe_load(Path(row, "config.yaml").read_text())
        away["TRANSFER"]["DATA_ROOT"] = str(tmp_path / "gone")
        Path(row, "config.yaml").write_text(yaml.safe_dump(away))
    answer = as_json(tmp_path, "a", "b")
    assert (answer["errors"], answer["differing_images"]) == (None, []) and "gone" in answer["note"]
    assert [side["label"] for side in answer["sides"]] == ["A: simsiam", "B: simsiam"]
    verdict = answer["differences"]["bbox"]["metrics"][0]["verdict"]
    assert (verdict["difference"], verdict["low"], verdict["high"], verdict["p"]) == (0, 0, 0, 1)
    assert as_json(tmp_path, "a", "b", "--data", str(made.split.folder.parent))["errors"] is not None


def test_other_annotations_than_those_measured_on_are_not_used(
    made: Dataset, pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made.split.folder.parent, tmp_path / "data")
    content = json.loads((tmp_path / "data/made.json").read_text())
    content["annotations"][0]["bbox"][0] += 1
    (tmp_path / "data/made.json").write_text(json.dumps(content))
    refused([*pair, "--data", str(tmp_path / "data")], "are not those", capsys)


Change = Callable[[Detections], Detections]
REFUSED: dict[str, tuple[Change, str]] = {
    "other images": (lambda kept: replace(kept, images=(*kept.images[:-1], "other")), "test images"),
    "other annotations": (lambda kept: replace(kept, truth="0" * 64), "annotations"),
    "other classes": (lambda kept: replace(kept, classes=("cat", "cow")), "class lists"),
    "a toy": (lambda kept: replace(kept, toy=True), "toy"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_was_measured_otherwise_is_refused_in_one_line(
    case: str, made: Dataset, pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, words = REFUSED[case]
    other = trial(tmp_path / "other", made, change(found(made, 0.4)), "other")
    refused([pair[0], str(other), "--output", str(tmp_path / "out.md")], words, capsys)
    assert not (tmp_path / "out.md").exists()


def refused(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call_main(main, words) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and text in err


def test_wrong_words_are_refused_in_one_line(
    made: Dataset, pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path / "run", [("a", "A", None)], {"made": 1, "more": 1})
    for task in ("made", "more"):
        trial(run.finetune("a", task, 1, None), made, found(made, 0.4), "a")
    folder, a = run.save(), pair[0]
    (tmp_path / "list.json").write_text("[]")
    for words, text in (
        ([a, str(tmp_path / "gone")], "gone does not exist"),
        ([a, str(folder)], f"or a row: {folder}:a"),
        ([a, f"{folder}:b"], "valid: a"),
        ([a, f"{folder}:a"], "--task made"),
        ([a, f"{folder}:a", "--task", "mode"], "did you mean made"),
        ([a, pair[1], "--data", str(tmp_path)], "--data"),
        ([a, pair[1], "--images", "65"], "0 to 64"),
        ([a, pair[1], "--output", str(tmp_path / "page.pdf")], ".html"),
        ([str(tmp_path / "list.json")] * 2, "--task"),
    ):
        refused(words, text, capsys)
    shutil.copytree(a, tmp_path / "cut")
    content = (tmp_path / "cut" / DETECTIONS_FILE).read_bytes()
    (tmp_path / "cut" / DETECTIONS_FILE).write_bytes(content[:-9])
    refused([a, str(tmp_path / "cut")], "--eval-only", capsys)
    shutil.copy(Path(pair[1], DETECTIONS_FILE), tmp_path / "cut" / DETECTIONS_FILE)
    refused([a, str(tmp_path / "cut")], "is of another trial", capsys)
    (tmp_path / "cut" / DETECTIONS_FILE).unlink()
    refused([a, str(tmp_path / "cut")], "--eval-only", capsys)


def test_masks_are_compared_where_both_sides_have_them(made: Dataset, pair: tuple[str, str], tmp_path: Path) -> None:
    kept = found(made, 0.4)
    masks = replace(kept, matches={**kept.matches, "segm": kept.matches["bbox"]})
    a, b = (str(trial(tmp_path / name, made, masks, name)) for name in ("a", "b"))
    parts = as_json(tmp_path, a, b)["differences"]
    assert parts["segm"] == parts["bbox"] and as_json(tmp_path, a, pair[0])["differences"].keys() == {"bbox"}


@pytest.mark.slow
@pytest.mark.skipif(browser.find() is None, reason="Chromium is not installed")
def test_the_page_opens_and_enlarges_its_pictures(pair: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    assert call_main(main, [*pair, "--images", "2", "--output", str(file)]) == 0
    with browser.Browser(str(browser.find()), tmp_path / "profile") as page:
        for width in (1400, 400):
            page.see(width)
            page.open(file.as_uri())
            assert page.js("document.documentElement.scrollWidth") <= width
        page.click(".photos button")
        assert page.js("document.querySelector('dialog').open")
        assert not page.errors and all(request.startswith(("file:", "data:")) for request in page.requests)
