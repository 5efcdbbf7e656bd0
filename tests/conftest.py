"""What every test may use."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads that wait for each other take minutes on a busy machine
os.environ.setdefault("MPLBACKEND", "Agg")
ROOT = Path(__file__).resolve().parents[1]

NUMERIC = (
    *("compat", "pretrain/evaluation", "pretrain/methods", "pretrain/models", "pretrain/optim"),
    *("transfer/evaluation", "transfer/modeling", "transfer/parity"),
)
"""Folders whose tests compare computed numbers with recorded ones, or within a tolerance: the marker `numeric`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make test-numeric` runs."""
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").as_posix() if item.path.is_relative_to(ROOT / "tests") else ""
        if folder.startswith(tuple(f"{name}/" for name in NUMERIC)):
            item.add_marker(pytest.mark.numeric)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout under test."""
    return ROOT


@pytest.fixture(scope="session")
def cpu_clock() -> Callable[[], float]:
    """Processor seconds of this process and of those it has waited for: what others do here does not count."""

    def seconds() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in used)

    return seconds


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The small real sets that lie beside some checkouts; a test that needs them skips where they are missing."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the small real sets are not beside this checkout")
    return folder
