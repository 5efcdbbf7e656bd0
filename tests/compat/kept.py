"""Copies of the run folders that earlier commits wrote, and what is compared with them."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from ssl_transfer.console import call_main
from tests.compat.ends import end_of, machine
from tools import launch

HERE = Path(__file__).parent
FOLDERS = sorted(path.parent for path in HERE.glob("*/ends.json"))
MADE_AT = "/tmp/compat"
"""Where the folders were made: the path of the images stands in the fingerprints, and need not exist."""
TOLERANCE = 1e-3
"""Relative and absolute, for a pre-training or evaluation that ends on another machine than the recorded one, after
four float32 steps. Measured: 6.5e-5 with ATEN_CPU_CAPABILITY=default and ONEDNN_MAX_CPU_ISA=SSE41 against AVX-512's
kernels, 4.5e-5 with AVX2's, 5.4e-5 with two threads. Without the optimizer's momenta: 0.09 and more."""


KINDS = ("pretrain", "convert", "evaluate", "search", "choose", "finetune", "table")
ACTIONS = "run|done|diverged|skip|queued"
STATES = "pending|running|interrupted|done|diverged|failed|cancelled|queued|unknown|incomplete|blocked"


class Kept:
    """A copy of a folder that an earlier commit wrote.

    Args:
        source: the folder.
        path: where its copy goes.
    """

    def __init__(self, source: Path, path: Path) -> None:
        self.source, self.path = source, path
        self.ends: dict[str, Any] = json.loads((source / "ends.json").read_text())
        self.overlay = str(path / "configs/narrow.yaml")
        shutil.copytree(source / "configs", path / "configs")
        for file in (path / "configs").glob("*.yaml"):
            text = file.read_text().replace(f"{MADE_AT}/whole_slurm/configs", str(path / "slurm_configs"))
            file.write_text(text.replace(f"{MADE_AT}/configs", str(path / "configs")))

    def run(self, name: str) -> Path:
        """The copy of a run folder."""
        if not (self.path / name).exists():
            shutil.copytree(self.source / name, self.path / name)
            if name == "slurm":
                shutil.copytree(self.source / "slurm_configs", self.path / "slurm_configs")
        return self.path / name

    def job(self, run: str, name: str) -> Path:
        """The copy of a job's folder."""
        [folder] = [path for path in (self.run(run) / "jobs").iterdir() if path.name[:-9] == name]
        return folder

    def launch(self, verb: str, run: str, *words: str) -> int:
        """launch.py on the copy."""
        file = str(self.path / f"configs/{run}.yaml")
        return call_main(launch.main, [verb, file, "--set", f"run_dir={self.run(run)}", *words])

    def assert_ends_as_recorded(self, run: str, name: str, tolerance: float = TOLERANCE) -> None:
        """The job ended as the one that was not interrupted: to the bit on the machine that recorded it."""
        ours, theirs = end_of(self.job(run, name)), self.ends[run][name]
        exact = machine() == self.ends["machine"]
        assert ours.keys() == theirs.keys()
        for part in theirs:
            assert_close(ours[part], theirs[part], 0.0 if exact else tolerance, (name, part))


def assert_close(ours: Any, theirs: Any, tolerance: float, at: tuple[str, ...]) -> None:
    """Everything recorded is there; numbers within the tolerance."""
    if isinstance(theirs, dict):
        for key in theirs:
            assert key in ours, (*at, key)
            assert_close(ours[key], theirs[key], tolerance, (*at, key))
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), at
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_close(one, other, tolerance, (*at, str(index)))
    elif isinstance(theirs, float):
        assert tolerance == math.inf or ours == pytest.approx(theirs, rel=tolerance, abs=tolerance), at
    else:
        assert ours == theirs, at


def words_of(text: str, words: str) -> dict[str, str]:
    """The word after each job's name in what `plan` or `status` printed."""
    found = re.findall(rf"^\W*([a-z]+(?:\.[\w.]+)?) +({words})\b", text, re.MULTILINE)
    return {name: word for name, word in found if name.split(".")[0] in KINDS}
