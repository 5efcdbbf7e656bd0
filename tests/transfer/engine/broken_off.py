"""How two trials' ends are compared, and the shell's words for a trial."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from ssl_transfer.files import read_json
from transfer.engine.prepare import TrialRequest


def final(folder: Path) -> dict[str, Any]:
    return dict(torch.load(folder / "model_final.pth", weights_only=True)["model"])


def assert_same_end(one: Path, other: Path) -> None:
    """Bit for bit the same detector, the same metrics and, but for times, the same lines of metrics.json."""
    a, b = final(one), final(other)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert read_json(one / "result.json")["metrics"] == read_json(other / "result.json")["metrics"]
    assert logged(one) == logged(other)


def logged(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.json without times."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith(("time", "seconds"))} for line in lines]


def iterations(folder: Path) -> list[int]:
    return [json.loads(line)["iteration"] for line in (folder / "metrics.json").read_text().splitlines()]


def command(root: Path, request: TrialRequest, *more: str) -> list[str]:
    """The command line that asks for a trial, resuming it where it was broken off."""
    words = ["--config-file", request.config_file, "--overlay", request.overlay, "--weights", request.weights]
    words += ["--seed", request.seed, "--output", request.output, "--resume", *more]
    return [sys.executable, str(root / "tools/transfer.py"), *map(str, words), *request.overrides]
