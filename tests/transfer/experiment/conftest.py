"""The small experiment that the tests of this folder run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.transfer.experiment.fake_slurm import FakeSlurm, make_fake_slurm
from tests.transfer.experiment.small_world import World, make


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """An experiment in a fresh folder; nothing has run yet."""
    monkeypatch.setenv("FAKE_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))  # no site file of this machine's user
    return make(tmp_path)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Slurm's commands, first in PATH, with an empty queue; no site file."""
    made = make_fake_slurm(tmp_path)
    monkeypatch.setenv("PATH", f"{made.bin}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return made
