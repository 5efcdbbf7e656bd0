"""Fixtures of the converter's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.transfer.weights.made_checkpoints import resnet
from transfer.weights import verify


@pytest.fixture(scope="session")
def r50() -> dict[str, torch.Tensor]:
    """A ResNet-50 of random weights, with counters."""
    return resnet()


@pytest.fixture(scope="session")
def other_r50() -> dict[str, torch.Tensor]:
    """Another one, for a second branch."""
    return resnet(seed=1)


@pytest.fixture(autouse=True)
def _no_big_files(tmp_path: Path) -> Iterator[None]:
    """Take the weights away after each test: pytest keeps three runs' folders, which would fill the disk."""
    yield
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.stat().st_size > 1_000_000:
            path.unlink()


@pytest.fixture(scope="session")
def _built() -> dict[str, torch.nn.Module]:
    return {}


@pytest.fixture
def shared_detectors(monkeypatch: pytest.MonkeyPatch, _built: dict[str, torch.nn.Module]) -> None:
    """Reuse the built detectors in every verification, filled with NaN as new ones are; saves a second each."""
    build = verify.build_nan_detector

    def reuse(cfg: Any) -> torch.nn.Module:
        key = cfg.dump()
        if key not in _built:
            _built[key] = build(cfg)
        verify.fill_nan(_built[key])
        return _built[key]

    monkeypatch.setattr(verify, "build_nan_detector", reuse)
