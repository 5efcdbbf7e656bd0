"""docs/guides/gpus.md: its table is what the engine does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from transfer.engine.config import load_config, scale_to_processes
from transfer.engine.guards import resolve_norm
from transfer.engine.result import comparable

PAGE = Path(__file__).resolve().parents[3] / "docs/guides/gpus.md"
ROWS = re.findall(r"^\| (\d) \| `(.*?)` \| (\d+) \| (\w+).*? \| (.*?) \|$", PAGE.read_text(), re.MULTILINE)


def test_the_table_has_lines() -> None:
    assert [int(row[0]) for row in ROWS] == [8, 4, 2, 1, 4, 2, 1]


@pytest.mark.parametrize(("gpus", "command", "images", "norm", "verdict"), ROWS)
def test_a_line_of_the_table(root: Path, gpus: str, command: str, images: str, norm: str, verdict: str) -> None:
    found = load_config(root / "configs/transfer/voc07.yaml", overrides=("MODEL.DEVICE", "cpu"))
    count = int(gpus)
    assert f"--num-gpus {gpus}" in command
    cfg = scale_to_processes(found.cfg, 8, count) if "--reference-gpus 8" in command else found.cfg
    resolve_norm(cfg, count)
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH // count, cfg.MODEL.RESNETS.NORM) == (int(images), norm)
    answer = comparable(cfg, found.protocol, count)
    if answer["ok"]:
        assert verdict == "yes"
    else:
        told = f"no: batch {solver.IMS_PER_BATCH}, lr {solver.BASE_LR:g}, {solver.MAX_ITER:,} iterations"
        assert verdict == told
        assert f"total batch is {solver.IMS_PER_BATCH}, not 16" in answer["reasons"]
