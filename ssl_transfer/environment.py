"""Provenance of results: versions, commit, host, devices."""

from __future__ import annotations

import importlib.util
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ssl_transfer import __version__

_PACKAGE = Path(__file__).resolve().parent
IS_WHEEL = (_PACKAGE / "configs").is_dir()
"""Whether this code was installed from a wheel, which holds tools/ and configs/ inside this package."""

ROOT = _PACKAGE if IS_WHEEL else _PACKAGE.parent
"""The folder that holds tools/ and configs/: the checkout, or in a wheel `ssl_transfer/`."""

IMPORT_ROOT = _PACKAGE.parent
"""The folder that the packages are imported from: the checkout, or site-packages."""

DISTRIBUTION = "ssl-detection-transfer"
COMMIT_FILE = ".commit"
"""File that records the commit in a wheel, and in a copy of a checkout without git."""


def version_of(package: str) -> str | None:
    """Installed version of a distribution, without importing it; None where it is not installed."""
    import importlib.metadata  # here: every command imports this module, and few need this

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe_versions() -> str:
    """Version and commit of this project, and versions of what it computes with, without importing them."""
    others = [f"{name} {version_of(name) or 'not installed'}" for name in ("torch", "torchvision", "detectron2")]
    return ", ".join(
        [f"ssl-transfer {__version__} (commit {commit()})", *others, f"python {platform.python_version()}"]
    )


def load_tool(name: str) -> ModuleType:
    """A tool of tools/ as the module `ssl_transfer.tools.NAME`, in a checkout too."""
    module_name = f"ssl_transfer.tools.{name}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, ROOT / "tools" / f"{name}.py")
        assert spec is not None and spec.loader is not None, name
        sys.modules[module_name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[module_name]


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
        "host": host_name(),
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
