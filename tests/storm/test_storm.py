"""A short storm; `make storm` runs the long one. In a process of its own, which never trains: it forks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["--tools", "launch", "--points", "4", "--mutations", "40", "--bits", "60"],
        ["--tools", "pretrain", "transfer", "--points", "3", "--mutations", "0", "--bits", "0"],
    ],
)
def test_a_short_storm_leaves_everything_clean(root: Path, words: list[str]) -> None:
    command = [sys.executable, "-m", "tests.storm.storm", "--seed", "7", *words]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].startswith("0 not clean of ")
