"""What `make bench` measures of pre-training, each beside its peer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from common.measure import Comparison
from pretrain.data.benchmarks import comparisons as input_pipelines
from pretrain.engine.benchmarks import comparisons as steps


def comparisons(folder: Path) -> Iterator[Comparison]:
    """All of them; `folder` is a scratch folder for images."""
    yield from input_pipelines(folder)
    yield from steps()
