"""docs/guides/gpus.md: its table is what the engine does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from transfer.engine import config
from transfer.engine.config import Source
from transfer.engine.guards import settle_norm
from transfer.engine.result import comparable
from transfer.engine.scaling import scale

PAGE = Path(__file__).resolve().parents[3] / "docs/guides/gpus.md"
ROWS = re.findall(r"^\| (\d) \| `(.*?)` \| (\d+) \| (\w+).*? \| (.*?) \|$", PAGE.read_text(), re.MULTILINE)


def test_the_table_was_read() -> None:
    assert [int(row[0]) for row in ROWS] == [8, 4, 2, 1, 4, 2, 1]


@pytest.mark.parametrize(("gpus", "command", "images", "norm", "verdict"), ROWS)
def test_a_line_of_the_table(root: Path, gpus: str, command: str, images: str, norm: str, verdict: str) -> None:
    found = config.load(Source(root / "configs/transfer/voc07.yaml", None, ("MODEL.DEVICE", "cpu")))
    count = int(gpus)
    assert f"--num-gpus {gpus}" in command
    cfg = scale(found.cfg, 8, count) if "--reference-gpus 8" in command else found.cfg
    settle_norm(cfg, count)
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH // count, cfg.MODEL.RESNETS.NORM) == (int(images), norm)
    answer = comparable(cfg, found.task_cfg, count)
    if answer["ok"]:
        assert verdict == "yes"
    else:
        told = f"no: batch {solver.IMS_PER_BATCH}, lr {solver.BASE_LR:g}, {solver.MAX_ITER:,} iterations"
        assert verdict == told
        assert f"total batch is {solver.IMS_PER_BATCH}, not 16" in answer["reasons"]
