"""Plots: which ones there are, that they tell their series apart without colour, and what their files are."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from tests.transfer.report.made_results import put, result, whole
from transfer.report.collect import collect
from transfer.report.figures import all_plots, style, write_all
from transfer.report.figures.curves import MAX_POINTS, figure_2, read_series
from transfer.report.figures.trials import axis_panels
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


def trial_axes(report: Report, name: str) -> list[Axes]:
    (plot,) = [plot for plot in all_plots(report) if plot.name == f"trials-table5-{name}"]
    with style.styled():
        return plot.draw().axes


def drawn(axes: list[Axes], label: str) -> list[float]:
    """The x of everything of this name, from the top row to the lowest."""
    lines = [line for one in axes for line in one.lines if line.get_label() == label]
    return [x for line in sorted(lines, key=lambda line: round(line.get_ydata()[0])) for x in line.get_xdata()]


def test_a_trial_plot_has_one_axis_for_all_rows_and_the_published_value_in_the_rows_line(made: Report) -> None:
    axes = trial_axes(made, "voc07-bbox-ap")
    offsets = [-0.2, -0.1, 0.0, 0.1, 0.2]
    assert drawn(axes, "trial") == pytest.approx([mean + o for mean in (17.0, 42.5, 47.1) for o in offsets])
    assert drawn(axes, "mean") == pytest.approx([17.0, 42.5, 47.1])
    assert drawn(axes, "published") == [16.8, 42.4, 47.0]
    half = 2.776445105 * (0.025 / 5) ** 0.5
    ends = [mean + side * half for mean in (17.0, 42.5, 47.1) for side in (-1, 1)]
    assert drawn(axes, "95 %, seeds") == pytest.approx(ends)
    texts = [text.get_text() for text in axes[0].texts]
    assert texts == ["scratch (n=5)", "ImageNet supervised (n=5)", "SimSiam, base (n=5)"], "the table's order"


def test_published_rows_beside_results_are_marks_and_others_have_a_line(tmp_path: Path) -> None:
    report = build_report(collect([whole(tmp_path)]), Options(published="rows"))
    (axes, *_) = trial_axes(report, "voc07-bbox-ap")
    texts = [text.get_text() for text in axes.texts]
    assert "MoCo v2 (repro.+) (published)" in texts and "SimSiam, base (published)" not in texts
    assert len(texts) == 8


def test_the_axis_is_broken_where_a_far_row_would_press_the_others_together() -> None:
    near = [(42.3, 42.7), (46.9, 47.3)]
    assert len(axis_panels(near)) == 1
    (low, high), (start, end) = axis_panels([(16.8, 17.2), *near])
    assert low < 16.8 and 17.2 < high < start < 42.3 and end > 47.3
    assert len(axis_panels([(17.0, 17.0), (47.0, 47.0)])) == 1, "nothing would be seen better"
    assert len(axis_panels([(46.0, 46.1), (47.0, 47.0), (47.1, 47.3)])) == 1, "near enough"
    for strips in ([(0.0, 0.2)], [(99.9, 100.0)], [(0.0, 100.0)], [(0.0, 0.0), (90.0, 99.0), (95.0, 100.0)]):
        assert all(0 <= a < b <= 100 for a, b in axis_panels(strips)), strips


@pytest.mark.parametrize(("values", "has_interval"), [([1.0, 30.0, 2.0], True), ([1.0, 30.0], False), ([1.0], False)])
def test_an_interval_needs_three_trials_and_ends_at_zero(
    tmp_path: Path, values: list[float], has_interval: bool
) -> None:
    for seed, value in enumerate(values, 1):
        put(tmp_path / str(seed), result("mine", "voc07", seed, [75.0, value, 50.0]))
    axes = trial_axes(build_report(collect([tmp_path]), Options()), "voc07-bbox-ap")
    interval = drawn(axes, "95 %, seeds")
    assert (interval[:1] == [0.0]) == has_interval and bool(interval) == has_interval
    assert bool(drawn(axes, "mean")) == (len(values) > 1)
    assert all(0 <= edge <= 100 for one in axes for edge in one.get_xlim())


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
