"""The rows of `make bench` beside DALI: their checks pass, and can fail; where DALI is missing, one line says so."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from common.console import call
from pretrain.data import benchmarks_dali
from pretrain.data.benchmarks import draw_photos
from pretrain.data.benchmarks_dali import ROWS, comparisons, peer_decoding, peer_views
from pretrain.data.index import ImageIndex, find_images
from pretrain.data.pipelines import why_no_dali
from tests.needs import missing
from tools.bench import main


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageIndex:
    if why := why_no_dali():
        missing(f"{why}; make setup-dali")
    monkeypatch.setattr(benchmarks_dali, "SIZE", 64)
    draw_photos(tmp_path, 16)
    return find_images(str(tmp_path))


def test_both_rows_are_equal_as_far_as_they_can_be(photos: ImageIndex) -> None:
    views, decoding = comparisons(photos)
    assert (views.what, decoding.what) == ROWS and views.count == decoding.count == 16
    assert views.equal().startswith("own draws: means ") and decoding.equal() == "same pixels"
    assert [len(one.as_tensor().shape()) for one in views.theirs()] == [4, 4]  # type: ignore[attr-defined]


@pytest.mark.parametrize("other", [{"blur_prob": 1.0, "blur_sigma": (5.0, 6.0)}, {"jitter": (0.9, 0.9, 0.4, 0.1)}])
def test_views_drawn_otherwise_are_refused(
    photos: ImageIndex, monkeypatch: pytest.MonkeyPatch, other: dict[str, object]
) -> None:
    monkeypatch.setattr(benchmarks_dali, "peer_views", lambda paths, how: peer_views(paths, replace(how, **other)))
    with pytest.raises(AssertionError, match="the means differ by"):
        benchmarks_dali.two_views(photos).equal()


def test_other_pixels_are_refused(photos: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks_dali, "peer_decoding", lambda paths: peer_decoding(paths[::-1]))
    with pytest.raises(AssertionError, match="the pixels differ"):
        benchmarks_dali.decoding(photos).equal()


def test_without_dali_its_rows_are_left_out_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)  # importing it fails
    assert call(main, ["--no-costs", "--only", "beside DALI"]) == 2
    first, last = capsys.readouterr().err.splitlines()[:1], "no row's name holds it"
    assert first[0].startswith("not measured: DALI cannot be imported (") and first[0].endswith("pip install '.[dali]'")
    assert call(main, ["--no-costs", "--only", "no such row"]) == 2
    said = capsys.readouterr().err
    assert "not measured" not in said and last in said
