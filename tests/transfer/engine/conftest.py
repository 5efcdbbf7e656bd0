"""Requests for small trials."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from transfer.engine.prepare import TrialRequest

RequestFactory = Callable[..., TrialRequest]


@pytest.fixture
def make_request(root: Path, toy_detection: Path, narrow_overlay: Path, tmp_path: Path) -> RequestFactory:
    """A request for a small trial: `make_request(*overrides, task="voc07", weights="scratch", seed=1, output=…, …)`."""

    def make(
        *overrides: str,
        task: str = "voc07",
        weights: str = "scratch",
        seed: int = 1,
        output: Path | None = None,
        **more: object,
    ) -> TrialRequest:
        words = ("TRANSFER.DATA_ROOT", str(toy_detection), *overrides)
        return TrialRequest(
            config_file=root / f"configs/transfer/{task}.yaml",
            overlay=narrow_overlay,
            overrides=words,
            weights=weights,
            seed=seed,
            output=output or tmp_path / "trial",
            **more,  # type: ignore[arg-type]
        )

    return make
