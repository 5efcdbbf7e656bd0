"""What `make bench` measures of pre-training, each beside its peer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from common.measure import Comparison
from pretrain.data.benchmarks import comparisons as input_pipelines
from pretrain.data.benchmarks_dali import ROWS
from pretrain.data.pipelines import why_no_dali
from pretrain.engine.benchmarks import comparisons as steps


def comparisons(folder: Path) -> Iterator[Comparison]:
    """All of them; `folder` is a scratch folder for images."""
    yield from input_pipelines(folder)
    yield from steps()


def left_out() -> tuple[Sequence[str], str]:
    """The rows that cannot be measured here, and why."""
    why = why_no_dali()
    return (ROWS, f"{why}; pip install '.[dali]'") if why else ((), "")
