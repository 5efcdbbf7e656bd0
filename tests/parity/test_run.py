"""The runner of the comparisons with the originals: what it says and returns, on stubs."""

from __future__ import annotations

import importlib
import subprocess
from pathlib import Path

import pytest

from tests.parity import run
from tests.parity.comparison import Check, Comparison, Original, Outcome, Sources


def _git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(["git", "-C", str(folder), *who, *words], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Original]:
    """A folder with one clone, whose recorded commit is not the newest."""
    folder = tmp_path_factory.mktemp("originals")
    (folder / "peer").mkdir()
    _git(folder / "peer", "init", "-q")
    for value in ("2.0", "3.0"):
        (folder / "peer/value.txt").write_text(value)
        _git(folder / "peer", "add", "value.txt")
        _git(folder / "peer", "commit", "-qm", value)
    return folder, Original("somebody/peer", _git(folder / "peer", "rev-parse", "HEAD~1").strip())


def _check(ours: float, sources: Sources) -> list[Check]:
    theirs = float((sources.files[0] / "value.txt").read_text())
    return [Check("value", ours == theirs, f"{ours - theirs}", abs(ours - theirs))]


def told_apart(sources: Sources) -> Outcome:
    return Outcome(_check(2, sources), _check(2.5, sources), "2.5")


def not_told_apart(sources: Sources) -> Outcome:
    return Outcome(_check(2, sources), _check(2, sources), "nothing")


def different(sources: Sources) -> Outcome:
    return Outcome(_check(2.25, sources), _check(2.5, sources), "2.5")


def broken(sources: Sources) -> Outcome:
    raise ValueError("the original has no such function")


@pytest.mark.parametrize(
    ("function", "verdict", "code"),
    [
        (told_apart, "| 0                  | 2.5             | 0.5            | equal   |", 0),
        (not_told_apart, "CHANGE NOT SEEN", 1),
        (different, "DIFFERS", 1),
        (broken, "FAILED: exit code 1", 1),
    ],
)
def test_verdict_and_exit_code(
    original: tuple[Path, Original], capfd: pytest.CaptureFixture[str], function, verdict: str, code: int
) -> None:
    folder, peer = original
    row = Comparison("value", f"{__name__}:{function.__name__}", (peer,))
    assert run.main([str(folder)], [row]) == code
    said = capfd.readouterr()
    assert verdict in said.out and f"peer@{peer.commit[:7]}" in said.out
    assert ("no such function" in said.err) == (function is broken)


def test_missing_originals_are_named(original: tuple[Path, Original], capsys: pytest.CaptureFixture[str]) -> None:
    folder, peer = original
    rows = [
        Comparison("absent", f"{__name__}:told_apart", (Original("somebody/other", peer.commit),)),
        Comparison("too old", f"{__name__}:told_apart", (Original("somebody/peer", "0" * 40),)),
    ]
    assert run.main([str(folder)], rows) == 2
    said = capsys.readouterr().out
    assert f"git clone https://github.com/somebody/other {folder / 'other'}" in said
    assert f"missing: commit 0000000 in {folder / 'peer'}" in said


def test_no_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run.main([str(tmp_path / "none")])
    assert stop.value.code == 2 and "is not a folder" in capsys.readouterr().err


def test_every_comparison_exists_and_has_something_to_run() -> None:
    assert len({row.name for row in run.COMPARISONS}) == len(run.COMPARISONS)
    for row in run.COMPARISONS:
        module, _, name = row.function.partition(":")
        assert callable(getattr(importlib.import_module(module), name))
        assert row.originals or row.packages
