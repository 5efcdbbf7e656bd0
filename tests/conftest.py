"""What every test may use."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import yaml

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads that wait for each other take minutes on a busy machine
os.environ.setdefault("MPLBACKEND", "Agg")
ROOT = Path(__file__).resolve().parents[1]
NARROW_DETECTOR = {
    "TRANSFER": {"TOY": True, "CLASSES": ["bus", "cat", "sheep"], "CHECK_COUNTS": False},
    "MODEL": {
        "DEVICE": "cpu",
        "RESNETS": {"STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 4},
        "ANCHOR_GENERATOR": {"SIZES": [[16, 32, 64]]},
        "RPN": {"PRE_NMS_TOPK_TRAIN": 60, "POST_NMS_TOPK_TRAIN": 20, "PRE_NMS_TOPK_TEST": 60, "POST_NMS_TOPK_TEST": 10},
        "ROI_HEADS": {"BATCH_SIZE_PER_IMAGE": 8},
        "ROI_BOX_HEAD": {"POOLER_RESOLUTION": 6},
        "ROI_MASK_HEAD": {"CONV_DIM": 16},
    },
    "INPUT": {"MIN_SIZE_TRAIN": [48, 64], "MIN_SIZE_TEST": 64, "MAX_SIZE_TRAIN": 128, "MAX_SIZE_TEST": 128},
    "DATALOADER": {"NUM_WORKERS": 0},
    "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 4, "STEPS": [3], "WARMUP_ITERS": 1},
    "TEST": {"PRECISE_BN": {"NUM_ITER": 2}},
}
"""A detector narrow enough to train in a second, as the `transfer` section of an overlay."""

NARROW_FPN = {
    "MODEL": {
        "ANCHOR_GENERATOR": {"SIZES": [[4], [8], [16], [32], [64]]},
        "RESNETS": {"NORM": "naiveSyncBN"},
        "FPN": {"OUT_CHANNELS": 16, "NORM": "naiveSyncBN"},
        "ROI_BOX_HEAD": {"CONV_DIM": 8, "FC_DIM": 16, "NORM": "naiveSyncBN"},
        "ROI_MASK_HEAD": {"CONV_DIM": 8, "NORM": "naiveSyncBN"},
    },
}
"""The same for a detector with a feature pyramid: the overlay's `transfer_fpn`."""

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
def count_lines() -> Callable[[Callable[[], object]], int]:
    """`count_lines(work)`: how many lines of Python `work()` runs. On every machine as many, unlike its seconds."""

    def count(work: Callable[[], object]) -> int:
        lines = 0

        def trace(_frame: FrameType, event: str, _argument: object) -> Any:
            nonlocal lines
            lines += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            work()
        finally:
            sys.settrace(before)
        return lines

    return count


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The small real sets that lie beside some checkouts; a test that needs them skips where they are missing."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the small real sets are not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def narrow_overlay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The overlay file of `NARROW_DETECTOR` and `NARROW_FPN`."""
    file = tmp_path_factory.mktemp("overlay") / "narrow.yaml"
    file.write_text(yaml.safe_dump({"transfer": NARROW_DETECTOR, "transfer_fpn": NARROW_FPN}))
    return file


@pytest.fixture(scope="session")
def toy_detection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with VOC2007, VOC2012 and COCO of a few drawn images; not to be changed."""
    from transfer.toy.build import Size, build_toy_sets

    folder = tmp_path_factory.mktemp("sets") / "toy"
    build_toy_sets(folder, size=Size(photos=8, voc2007=(16, 8), voc2012=(8, 8), coco=(12, 8)))
    return folder / "detection"
