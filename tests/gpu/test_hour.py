"""The script for one GPU: its parts are independent, each within its time; what a CPU can run of it runs."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from ssl_transfer.environment import ROOT
from tests.gpu import hour

SCRIPT = ROOT / "tests" / "gpu" / "hour.sh"
STAND_IN = """#!/bin/bash
case "$*" in
    -c*) echo GPU ;;
    *losses*) exit 3 ;;
    *speed*) exec sleep 100 ;;
    *) echo "ran $*" ;;
esac
"""


def test_a_part_that_fails_or_takes_too_long_ends_only_itself(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    settings = {"PYTHON": str(python), "OUT": str(tmp_path / "out"), "LIMIT": "20"}
    ended = subprocess.run(
        [SCRIPT, "photographs"], env=os.environ | settings, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 1  # the losses failed
    parts = {file.stem: file.read_text() for file in (tmp_path / "out").glob("*.txt")}
    assert "exit code 3" in parts["losses"]
    assert "ran tools/doctor.py --deep" in parts["deep"]
    assert "exit code 124" in parts["speed"]  # it used up the time
    assert "pipelines: no time was left" in ended.stdout


@pytest.mark.slow
def test_losses_are_kept_with_what_made_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.json", "b.json"):
        assert hour.main(["losses", str(tmp_path / name), "--steps", "2"]) == 0
    kept = json.loads((tmp_path / "a.json").read_text())
    assert kept["losses"] == json.loads((tmp_path / "b.json").read_text())["losses"]
    assert kept["device"] and kept["torch"]
    assert all(len(losses) == 2 for kind in kept["losses"].values() for losses in kind.values())


@pytest.mark.slow
def test_both_fast_pipelines_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    assert hour.main(["pipelines", "--images", "16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["opencv", "crops"]
