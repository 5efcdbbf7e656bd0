"""A copy of each kept folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compat.kept import FOLDERS, Kept


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    """A copy of a folder of an earlier commit."""
    return Kept(request.param, tmp_path / "kept")


@pytest.fixture
def empty_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Slurm that has forgotten every job."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, code in (("squeue", 0), ("sacct", 1)):
        (folder / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
