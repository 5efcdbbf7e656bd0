"""Python, torch, torchvision, Detectron2 and the other required packages."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import platform
import sys
from pathlib import Path

from ssl_transfer.environment import version_of
from transfer.doctor.finding import Finding, missing, ok, warning

LEAST_PYTHON = (3, 10)
PROJECT = "ssl-detection-transfer"
SETUP = "make setup"


def check_python() -> Finding:
    """Check the version of the interpreter."""
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info[:2] < LEAST_PYTHON:
        return missing("python", found, f"make setup PYTHON=python3.11 (at least {'.'.join(map(str, LEAST_PYTHON))})")
    return ok("python", found)


def check_torch() -> Finding:
    """Check that torch imports and computes."""
    version = version_of("torch")
    if version is None:
        return missing("torch", "not installed", SETUP)
    try:
        module = importlib.import_module("torch")
        module.ones(2) @ module.ones(2)
    except Exception as error:  # a broken build raises anything from OSError (a missing library) to RuntimeError
        return missing("torch", f"{version} does not work: {one_line(error)}", f"remove .venv, then {SETUP}")
    return ok("torch", f"{version}, CUDA {module.version.cuda or 'none (a CPU build)'}")


def check_torchvision() -> Finding:
    """Check that torchvision fits torch: its operators load only into the torch they were built for."""
    version = version_of("torchvision")
    if version is None:
        return missing("torchvision", "not installed", SETUP)
    try:
        tensor = importlib.import_module("torch").tensor
        ops = importlib.import_module("torchvision.ops")
        kept = ops.nms(tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.9]]), tensor([0.5, 0.9]), 0.5)
    except Exception as error:
        advice = "install the torchvision made for this torch: make setup TORCH=… TORCHVISION=…"
        return missing("torchvision", f"{version} does not fit torch {version_of('torch')}: {one_line(error)}", advice)
    if kept.tolist() != [1]:
        return missing(
            "torchvision", f"{version}: nms kept boxes {kept.tolist()}, not [1]", f"remove .venv, then {SETUP}"
        )
    return ok("torchvision", f"{version}, its operators fit torch {version_of('torch')}")


def check_detectron2(pinned_version: str, pinned_commit: str) -> Finding:
    """Check Detectron2's origin, and that the parts for a C4 detector import.

    Args:
        pinned_version: the version of the re-packed wheel.
        pinned_commit: the commit of the official repository that `--source git` builds.
    """
    install = "python tools/doctor.py --fix"
    try:
        distribution = importlib.metadata.distribution("detectron2")
    except importlib.metadata.PackageNotFoundError:
        return missing("detectron2", "not installed", install)
    origin, pinned = _origin(distribution, pinned_version, pinned_commit)
    try:
        importlib.import_module("detectron2.modeling")
        importlib.import_module("detectron2.engine")
    except Exception as error:
        return missing("detectron2", f"{origin}, does not import: {one_line(error)}", install)
    if not pinned:
        return warning("detectron2", origin, f"results were checked with the pinned build: {install}")
    return ok("detectron2", origin)


def _origin(distribution: importlib.metadata.Distribution, version: str, commit: str) -> tuple[str, bool]:
    """Origin of the installed Detectron2 as text, and whether it is one of the two pinned builds."""
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    built = origin.get("vcs_info", {}).get("commit_id")
    if built:
        which = "the pinned commit" if built == commit else "not the pinned one"
        return f"{distribution.version}, built from git {built[:8]} ({which})", built == commit
    if distribution.version == version:
        return f"{distribution.version}, the re-packed wheel", True
    folder = " from a working folder" if origin.get("dir_info", {}).get("editable") else ""
    return f"{distribution.version}, another build{folder}", False


def packages() -> Finding:
    """Check the other dependencies in the project's metadata."""
    try:
        needs = importlib.metadata.requires(PROJECT) or []
    except importlib.metadata.PackageNotFoundError:
        return missing("packages", f"{PROJECT} itself is not installed", SETUP)
    try:
        faults = [fault for need in needs if (fault := _fault(need))]
    except ImportError:  # packaging, which Detectron2 brings
        return missing("packages", "packaging is not installed", SETUP)
    if faults:
        return missing("packages", ", ".join(faults), SETUP)
    return ok("packages", f"all {sum('extra ==' not in need for need in needs)} are installed in suitable versions")


def _fault(need: str) -> str:
    """How a requirement is not met; empty where it is met or belongs to an extra."""
    from packaging.requirements import Requirement

    wanted = Requirement(need)
    if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
        return ""
    version = version_of(wanted.name)
    if version is None:
        return f"{wanted.name} is not installed"
    if not wanted.specifier.contains(version, prereleases=True):
        return f"{wanted.name} {version} is not {wanted.specifier}"
    return ""


def one_line(error: BaseException) -> str:
    """Type and first line of an error."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def checkout(folder: Path, commit: str) -> Finding:
    """Check the commit of the checkout."""
    if commit == "unknown":
        return warning(
            "checkout", f"{folder}, no git checkout", "results will record no commit; clone the repository with git"
        )
    if commit.endswith("-dirty"):
        return warning(
            "checkout", f"{commit[:8]} with changed files", "commit before important runs: results record the commit"
        )
    return ok("checkout", commit[:8])
