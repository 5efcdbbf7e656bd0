"""Plots: which ones there are, that they tell their series apart without colour, and what their files are."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.transfer.report.made_results import put, result, whole
from transfer.report.collect import collect
from transfer.report.figures import all_plots, style, write_all
from transfer.report.figures.curves import MAX_POINTS, figure_2, read_series
from transfer.report.model import Report
from transfer.report.render.pictures import inline_svg
from transfer.report.tables import Options, build_report


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return build_report(collect([whole(tmp_path_factory.mktemp("whole"))]), Options())


def test_every_plot_with_data_is_made(made: Report) -> None:
    names = [plot.name for plot in all_plots(made)]
    assert len(names) == len(set(names))
    assert [name for name in names if name.startswith("trials-")] == [
        f"trials-table5-{column}-{metric}"
        for column in ("voc07-bbox", "voc0712-bbox", "coco-bbox", "coco-segm")
        for metric in ("ap50", "ap", "ap75")
    ]
    assert {"pretraining-loss", "pretraining-std", "pretraining-knn-top1", "finetuning-coco-total-loss"} <= set(names)
    assert "classes-table5-voc07-bbox" in names


def test_the_std_plot_has_the_line_of_one_over_root_d(made: Report) -> None:
    (plot,) = [plot for plot in all_plots(made) if plot.name == "pretraining-std"]
    with style.styled():
        axes = plot.draw().axes[0]
    levels = [line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1]
    assert levels == pytest.approx([2048**-0.5])
    assert "1/√d is 0.0221 for d = 2048" in plot.alt


def test_figure_2_has_three_panels_side_by_side_with_every_run_in_each(made: Report) -> None:
    (plot,) = figure_2(made)
    with style.styled():
        figure = plot.draw()
    assert [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes] == [
        "Pre-training loss",
        "Std of the normalised output",
        "kNN monitor",
    ]
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    for axes in figure.axes:
        drawn = [line.get_label() for line in axes.lines if not line.get_label().startswith("_")]
        assert set(drawn) <= set(names)
    assert set(names) == {run.name for run in made.pretraining if (run.folder / "metrics.json").exists()}


def test_a_trial_plot_shows_every_trial_the_mean_its_interval_and_the_published_value(made: Report) -> None:
    """Each row's strip is centred: distances are checked, and that the numbers under it are in the right place."""
    (plot,) = [plot for plot in all_plots(made) if plot.name == "trials-table5-voc07-bbox-ap"]
    with style.styled():
        axes = plot.draw().axes[0]
    strip = {line.get_label(): list(line.get_xdata()) for line in axes.lines if 1.8 < line.get_ydata()[0] < 2.19}
    trials, (low, high), (paper,) = strip["trial"], strip["mean, 95 % interval"], strip["published"]
    assert [v - trials[0] for v in trials] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    half = 2.776445105 * (0.025 / 5) ** 0.5
    assert (low - trials[2], high - trials[2]) == pytest.approx((-half, half))
    assert paper - trials[2] == pytest.approx(-0.1)
    numbers = {float(t.get_text()): t.get_position()[0] for t in axes.texts if t.get_position()[1] > 2.2}
    assert len(numbers) >= 2
    for number, x in numbers.items():
        assert x - trials[2] == pytest.approx(number - 47.1)
    assert "SimSiam, base (n=5)" in [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(("other", "trials", "together"), [(47.6, 2, True), (30.0, 2, False), (30.0, 1, True)])
def test_rows_that_lie_near_each_other_have_one_range(
    tmp_path: Path, other: float, trials: int, together: bool
) -> None:
    for row, value in (("mine", 47.0), ("yours", other)):
        for seed in range(1, trials + 1):
            put(tmp_path / f"{row}{seed}", result(row, "voc07", seed, [75.0, value + seed / 10, 50.0]))
    (plot,) = [
        plot
        for plot in all_plots(build_report(collect([tmp_path]), Options(published="none")))
        if plot.name == "trials-table5-voc07-bbox-ap"
    ]
    with style.styled():
        axes = plot.draw().axes[0]
    drawn = [line.get_xdata()[0] for line in axes.lines if line.get_label() == "trial"]
    assert len(drawn) == 2
    assert abs(drawn[1] - drawn[0]) == pytest.approx(abs(other - 47.0) if together else 0.0, abs=1e-9)


def test_series_differ_without_colour() -> None:
    looks = [style.series_style(index) for index in range(8)]
    for key in ("color", "linestyle", "marker"):
        assert len({str(look[key]) for look in looks}) == 8
    assert len({str(style.series_style(index)) for index in range(64)}) == 64


def test_files_are_png_and_svg_and_the_same_each_time(made: Report, tmp_path: Path) -> None:
    few = Report(made.title, (), pretraining=made.pretraining)
    first = write_all(few, tmp_path / "a")
    second = write_all(few, tmp_path / "b")
    assert sorted(path.name for path in first) == sorted(
        f"pretraining{name}.{kind}" for name in ("", "-loss", "-std", "-knn-top1") for kind in ("png", "svg")
    )
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
    for path in first:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        else:
            ElementTree.fromstring(path.read_text())


def test_an_inline_plot_is_named_described_and_in_the_pages_colours(made: Report) -> None:
    (plot,) = [plot for plot in all_plots(made) if plot.name == "pretraining-loss"]
    with style.styled():
        text = inline_svg(style.to_svg(plot.draw()), plot)
    tree = ElementTree.fromstring(text)
    assert tree.attrib["role"] == "img"
    words = {element.attrib["id"]: element.text for element in tree if element.tag.endswith(("title", "desc"))}
    assert [words[name] for name in tree.attrib["aria-labelledby"].split()] == [plot.title, plot.alt]
    assert "var(--series-0)" in text
    assert not set(re.findall(r"#[0-9a-f]{6}", text)) & {style.INK, style.GRID, *style.SERIES}
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert all(name.startswith(plot.name) for name in ids)
    for reference in re.findall(r'(?:url\(#|href="#)([^)"]+)', text):
        assert reference in ids


def test_curves_are_thinned_sorted_and_the_later_line_wins(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    lines = [{"iteration": i, "loss": float(i)} for i in range(1000)]
    lines += [{"iteration": 998, "loss": -1.0}, {"iteration": 999, "loss": -2.0, "knn_top1": 5.0}]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"iteration": 1000, "lo')
    found = read_series(path, ["loss"], ["knn_top1"])
    points = found["loss"]
    assert len(points) <= MAX_POINTS + 2
    assert points == sorted(points)
    assert points[-1] == (999, -2.0)
    assert found["knn_top1"] == [(999, 5.0)]
    assert read_series(tmp_path / "nowhere", ["loss"]) == {}


def test_an_lr_search_is_drawn_with_its_choice(tmp_path: Path) -> None:
    put(tmp_path, result("mine", "voc07", 1, [75.0, 47.0, 50.0]))
    record = {"format": "lr-search/1", "row": "mine", "task": "voc07", "seed": 0, "split": "s", "metric": "bbox/AP"}
    points = [
        {"lr": 0.1, "value": None, "status": "diverged"},
        {"lr": 0.05, "value": 48.0},
        {"lr": 0.02, "value": 47.0},
    ]
    (tmp_path / "lr_search.json").write_text(json.dumps({**record, "points": points, "chosen": 0.05}))
    made = build_report(collect([tmp_path]), Options())
    (plot,) = [plot for plot in all_plots(made) if plot.section == "search"]
    with style.styled():
        axes = plot.draw().axes[0]
    curve, ring, lost = axes.lines
    assert list(zip(*curve.get_data(), strict=True)) == [(0.02, 47.0), (0.05, 48.0)]
    assert list(lost.get_xdata()) == [0.1]
    assert list(zip(*ring.get_data(), strict=True)) == [(0.05, 48.0)]
    assert "0.1: diverged" in plot.alt
