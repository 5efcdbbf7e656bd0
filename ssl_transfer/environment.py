"""Provenance of results: versions, commit, host, devices."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
"""The checkout of this code, with configs/ below it."""

COMMIT_FILE = ".commit"
"""File that records the commit in a copy of a checkout without git."""


def version_of(package: str) -> str | None:
    """Installed version of a distribution, without importing it; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """Commit of the checkout, with `-dirty` where tracked files were changed; `unknown` outside a checkout."""
    if (ROOT / COMMIT_FILE).is_file():
        return (ROOT / COMMIT_FILE).read_text(encoding="utf-8").strip()
    try:
        if Path(_git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            return "unknown"  # installed somewhere inside another project's checkout
        head = _git("rev-parse", "HEAD")
        return head + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


def describe() -> dict[str, Any]:
    """The environment section of a result; devices are listed only where torch is imported already."""
    return {
        "python": platform.python_version(),
        **{
            name: version_of(name) for name in ("torch", "torchvision", "detectron2", "numpy", "pycocotools", "hotcoco")
        },
        "commit": commit(),
        "host": socket.gethostname(),
        "devices": _devices(),
    }


def _devices() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return ["cpu"]
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def host_name() -> str:
    """This machine's name; under Slurm, the one that Slurm has for it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
