"""A job of a minute that says whether this project runs on the cluster's nodes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import environment
from common.files import write_json

FILE = "check.json"


@dataclass(frozen=True)
class CheckJob:
    """What the job runs; writes `check.json`.

    Attributes:
        folder: where to.
    """

    folder: str

    def __call__(self) -> None:
        """Look around and write it down."""
        write_json(Path(self.folder) / FILE, {"python": sys.executable, **environment.describe(), "gpus": _gpus()})


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    words = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def lines(found: dict[str, Any]) -> list[str]:
    """What the job found, for people."""
    versions = ", ".join(f"{name} {found[name]}" for name in ("torch", "torchvision", "detectron2"))
    return [
        f"host {found['host']}, {found['python']}",
        f"{versions}; commit {found['commit']}",
        f"GPUs: {', '.join(found['gpus']) or 'none'}",
    ]
