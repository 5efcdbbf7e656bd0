"""A copy of each kept folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compat.kept import FOLDERS, Kept


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    """A copy of a folder of an earlier commit."""
    return Kept(request.param, tmp_path / "kept")
