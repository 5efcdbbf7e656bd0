"""The small experiment that the tests of this folder run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.transfer.experiment.small_world import World, make


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """An experiment in a fresh folder; nothing has run yet."""
    monkeypatch.setenv("FAKE_DIR", str(tmp_path))
    return make(tmp_path)
