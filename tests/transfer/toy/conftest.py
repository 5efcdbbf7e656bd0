"""One small toy world for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from transfer.toy.build import Size, build_toy_sets

SMALL = Size(photos=16, voc2007=(12, 8), voc2012=(4, 3), coco=(8, 5))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small world of seed 0."""
    out = tmp_path_factory.mktemp("toy") / "world"
    build_toy_sets(out, 0, SMALL)
    return out
