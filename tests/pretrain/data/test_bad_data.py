"""Data that cannot be trained on: one line that names what and where, exit 2, and nothing written over."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.data.index import find_images
from pretrain.data.sampler import ResumableBatchSampler

Command = Callable[..., int]


def _said(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def _list_of(folder: Path, text: str) -> str:
    (folder / "list.txt").write_text(text)
    return str(folder / "list.txt")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (lambda t: ["DATA.ROOT", str(t / "gone")], "gone does not exist"),
        (lambda t: ["DATA.ROOT", str(t)], "holds no images"),
        (lambda t: ["SOLVER.BATCH_SIZE", "64"], "14 image(s), too few for a batch of SOLVER.BATCH_SIZE 64"),
        (lambda t: ["DATA.ROOT", _list_of(t, "# none\n")], "lists no images"),
        (lambda t: ["DATA.ROOT", _list_of(t, "a.jpg\n")], "line 1: "),
        (lambda t: ["DATA.LIST_ROOT", str(t)], "DATA.LIST_ROOT is set, but"),
        (lambda t: ["DATA.PIPELINE", "opencw"], "did you mean opencv?"),
        (lambda t: ["DATA.PIPELINE", "dali"], "set it to crops or opencv"),
        (lambda t: ["DATA.UNREADABLE", "skip"], "DATA.UNREADABLE is 'skip'"),
    ],
)
def test_invalid_data_is_refused_before_the_folder_is_created(
    pretrain: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: Callable[[Path], list[str]],
    said: str,
) -> None:
    (tmp_path / "data").mkdir()
    assert pretrain(tmp_path / "run", *words(tmp_path / "data")) == 2
    assert said in _said(capsys) and not (tmp_path / "run").exists()


def test_unreadable_folder_is_refused_by_name(
    pretrain: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "a").mkdir(parents=True)
    listed = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root, who may run this, is refused nothing
    assert pretrain(tmp_path / "run", "DATA.ROOT", str(tmp_path / "data")) == 2
    assert f"{tmp_path / 'data' / 'a'}: Permission denied" in _said(capsys)


def test_broken_image_stops_the_run_or_is_replaced_and_counted(
    pretrain: Command, draw: Callable[[Path, int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = draw(tmp_path / "images", 14)
    broken = root / "train" / "class0" / "004.png"
    broken.write_bytes(b"")
    words = ("DATA.ROOT", str(root), "DATA.PIPELINE", "crops")
    assert pretrain(tmp_path / "run", *words) == 2
    assert f"{broken} cannot be read as an image (it is empty)" in _said(capsys)
    assert pretrain(tmp_path / "other", *words, "DATA.UNREADABLE", "replace") == 0
    log = (tmp_path / "other" / "log.txt").read_text()
    line = "images of the last 3 iterations: 1 replaced (see docs/guides/data.md)"
    assert log.count(line) == _epochs_with(root, broken)


def _epochs_with(root: Path, file: Path) -> int:
    """In how many of the run's two epochs of 3 steps an image is not among the two that are left over."""
    index = find_images(str(root))
    number = [index.path(place) for place in range(len(index))].index(file)
    steps = list(ResumableBatchSampler(len(index), 4, 0, start=0, stop=6))
    return sum((epoch, number) in (key for step in steps for key in step) for epoch in (0, 1))
