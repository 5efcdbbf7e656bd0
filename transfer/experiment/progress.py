"""How far a job is and how long it has to go, from the metrics file that its tool writes."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import read_json
from transfer.experiment.graph import Job
from transfer.experiment.store import State, Store

TAIL = 1 << 16
"""Bytes at the end of a metrics file that surely hold its last line."""


@dataclass(frozen=True)
class Progress:
    """Where a job stands.

    Attributes:
        fraction: 0 … 1; None while unknown.
        eta: seconds still to go; None while unknown.
        note: what is worth a glance: the loss, or a finished trial's AP50, an evaluation's top-1.
    """

    fraction: float | None = None
    eta: float | None = None
    note: str = ""


def progress(job: Job, store: Store, state: State | None) -> Progress:
    """Where the job stands; never raises for a file that is half there or not there."""
    if state is not None and state.ended:
        return Progress(note=state.error or _headline(store.folder(job) / "result.json"))
    metrics = last_metrics(store.folder(job) / "metrics.json")
    if not metrics:
        return Progress()
    count, loss = _finite(metrics.get(job.counter)), _finite(metrics.get("total_loss", metrics.get("loss")))
    fraction = min(count / job.total, 1.0) if count is not None and job.total else None
    return Progress(fraction, _eta(metrics, fraction), "" if loss is None else f"loss {loss:.4g}")


def last_metrics(path: Path) -> dict[str, Any]:
    """The last whole line of a metrics file (JSON lines); empty when there is none yet."""
    try:
        with open(path, "rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - TAIL))
            lines = stream.read().split(b"\n")[:-1]  # what follows the last line break is being written
    except FileNotFoundError:
        return {}
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return {}


def _eta(metrics: dict[str, Any], fraction: float | None) -> float | None:
    """The tool's own estimate, else what is left at the last speed."""
    own = _finite(metrics.get("eta_seconds"))
    if own is not None:
        return own
    seconds, iteration = _finite(metrics.get("time")), _finite(metrics.get("iteration"))
    if not fraction or seconds is None or iteration is None:
        return None
    return seconds * iteration * (1 - fraction) / fraction


def _headline(path: Path) -> str:
    """A finished job's result in a few words."""
    result = read_json(path) if path.exists() else {}
    if result.get("status") == "diverged":
        where = result.get("divergence") or {}
        return f"diverged at iteration {where.get('iteration', 'unknown')}: {where.get('what', 'unknown')}"
    metrics = result.get("metrics") or {}
    for name, value in (("AP50", (metrics.get("bbox") or {}).get("AP50")), ("top-1", metrics.get("top1"))):
        if _finite(value) is not None:
            return f"{name} {value:.1f}"
    final = result.get("final") or {}
    return " · ".join(f"{key} {final[key]:.4g}" for key in ("loss", "std") if _finite(final.get(key)) is not None)


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
