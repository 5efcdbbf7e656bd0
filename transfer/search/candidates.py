"""One point of a search: the trial that was run at one learning rate, as its folder tells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError, nearest
from common.files import read_json, sha256_of

ROLE = "lr_search"
"""The role of a trial that was run to search the learning rate."""
RESULT, TRIAL = "result.json", "trial.json"
VALUES = ("AP", "AP50", "AP75")


@dataclass(frozen=True)
class Candidate:
    """What was found at one learning rate.

    Attributes:
        lr: the learning rate.
        status: `done`, `diverged` or `missing`.
        value: the metric in per cent; None where there is none.
        folder: the trial's; None for a point of the grid that no folder was given for.
        sha256: of its result; None without one.
        about: what all points of a search must share: task, seed, weights, settings, split.
    """

    lr: float
    status: str
    value: float | None = None
    folder: Path | None = None
    sha256: str | None = None
    about: Mapping[str, Any] | None = None


def read_candidate(folder: Path, metric: str) -> Candidate | None:
    """The point whose trial lies in `folder`.

    Args:
        folder: a trial's folder.
        metric: `bbox/AP`, `segm/AP50`, ….

    Returns:
        None when the folder has neither a result nor a trial, so that nobody can say which lr was meant.

    Raises:
        UserError: a file is broken, the trial is none of a search, or its metrics do not hold `metric`.
    """
    file = folder / RESULT
    if not file.is_file():
        lr = _begun(folder / TRIAL)
        return None if lr is None else Candidate(lr, "missing", folder=folder)
    content = read_json(file)
    if not isinstance(content, dict) or content.get("format") != "transfer-result/1":
        raise UserError(f"{file}: is not the result of a trial; give the folders that tools/transfer.py wrote")
    if content.get("role") != ROLE:
        raise UserError(f"{file}: is a reported trial, no point of a search; run points with --role {ROLE}")
    try:
        lr = float(content["settings"]["lr"])
        about = {
            "task": content["task"],
            "seed": content["seed"],
            "select_on": content["select_on"],
            "heldout": content.get("heldout"),
            "toy": content["toy"],
            "weights": {key: content["weights"][key] for key in ("name", "sha256")},
            "settings": {key: value for key, value in content["settings"].items() if key != "lr"},
        }
        value = None if content["status"] == "diverged" else _value(content["metrics"], metric, file)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{file}: lacks what docs/reference/formats.md asks of a result ({error!r}); run the point again"
        ) from error
    return Candidate(lr, content["status"], value, folder, sha256_of(file), about)


def _begun(file: Path) -> float | None:
    """The lr of a trial that began and did not end."""
    if not file.is_file():
        return None
    content = read_json(file)
    try:
        return float(content["settings"]["SOLVER.BASE_LR"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: does not say SOLVER.BASE_LR; is it a trial's?") from error


def _value(metrics: Mapping[str, Mapping[str, Any]], metric: str, file: Path) -> float | None:
    branch, _, key = metric.partition("/")
    valid = [f"{name}/{value}" for name in metrics for value in VALUES]
    if metric not in valid:
        raise UserError(f"{file}: holds no metric {metric!r}; {nearest(metric, valid)}")
    value = metrics[branch][key]
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
