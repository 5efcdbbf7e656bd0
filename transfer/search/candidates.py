"""One candidate of a search: the trial that was run at one learning rate, read from its folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_transfer.errors import UserError, nearest
from ssl_transfer.files import read_json, sha256_of
from ssl_transfer.formats.results import RESULT_FILE, TRANSFER, TransferResult

ROLE = "lr_search"
"""The role of a trial that is run to search the learning rate."""
IDENTITY_FILE = "trial.json"
VALUES = ("AP", "AP50", "AP75")


@dataclass(frozen=True)
class Candidate:
    """What was measured at one learning rate.

    Attributes:
        lr: the learning rate.
        status: `done`, `diverged` or `missing`.
        value: the metric in per cent; None where there is none.
        folder: the trial's; None for a learning rate of the grid that no folder was given for.
        sha256: of its result; None without one.
        shared: what all candidates of a search must have in common: task, seed, weights, settings, split.
    """

    lr: float
    status: str
    value: float | None = None
    folder: Path | None = None
    sha256: str | None = None
    shared: Mapping[str, Any] | None = None


def read_candidate(folder: Path, metric: str) -> Candidate | None:
    """The candidate whose trial lies in `folder`.

    Args:
        folder: a trial's folder.
        metric: `bbox/AP`, `segm/AP50`, ….

    Returns:
        None when the folder holds neither a result nor a trial, so that its lr is unknown.

    Raises:
        UserError: a file is damaged, the trial is not part of a search, or its metrics do not hold `metric`.
    """
    file = folder / RESULT_FILE
    if not file.is_file():
        lr = _started_lr(folder / IDENTITY_FILE)
        return None if lr is None else Candidate(lr, "missing", folder=folder)
    content = read_json(file)
    if not isinstance(content, dict) or content.get("format") != TRANSFER:
        raise UserError(f"{file}: is not the result of a trial; give the folders that tools/transfer.py wrote")
    result = TransferResult.parse(content, file, remedy="run the candidate again")
    contradiction = result.find_contradiction()
    if contradiction:
        raise UserError(f"{file} was altered: {contradiction}; run the candidate again")
    if result.role != ROLE:
        raise UserError(f"{file}: is a reported trial, not a candidate of a search; run candidates with --role {ROLE}")
    if result.settings.lr is None:
        raise UserError(f"{file}: settings.lr: is missing; run the candidate again")
    shared = {
        "task": result.task,
        "seed": result.seed,
        "select_on": result.select_on,
        "heldout": None if result.heldout is None else result.heldout.as_dict(),
        "toy": result.toy,
        "weights": {"name": result.weights.name, "sha256": result.weights.sha256},
        "settings": {key: value for key, value in result.settings.as_dict().items() if key != "lr"},
    }
    value = None if result.status == "diverged" else _value(result, metric, file)
    return Candidate(result.settings.lr, result.status, value, folder, sha256_of(file), shared)


def _started_lr(file: Path) -> float | None:
    """The lr of a trial that started and has not ended."""
    if not file.is_file():
        return None
    content = read_json(file)
    try:
        return float(content["settings"]["SOLVER.BASE_LR"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: settings.SOLVER.BASE_LR: is missing or no number; is it a trial's?") from error


def _value(result: TransferResult, metric: str, file: Path) -> float | None:
    branch, _, key = metric.partition("/")
    metrics = result.metrics or {}
    valid = [f"{name}/{value}" for name in metrics for value in VALUES]
    if metric not in valid:
        raise UserError(f"{file}: holds no metric {metric!r}; {nearest(metric, valid)}")
    value = getattr(metrics[branch], key, None)
    return float(value) if value is not None and math.isfinite(value) else None
