"""Trials run elsewhere: Detectron2's `metrics.json`, or a log with its `copypaste` lines."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from common.errors import UserError
from transfer.report.reading import BOX_METRICS
from transfer.report.records import DONE, Trial

COPYPASTE = re.compile(r"copypaste: (.+?)\s*$")
TASK = re.compile(r"^Task: (\w+)$")


def read(path: Path, row: str, task: str) -> Trial:
    """The last evaluation in a Detectron2 `metrics.json` (JSON lines) or in a log's `copypaste` lines.

    Args:
        path: the file.
        row: key of the table's row to put it in.
        task: key of the task it was run on: the file does not say, so it is the user's word.

    Raises:
        UserError: the file is missing, or holds no complete evaluation.
    """
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise UserError(f"--import {path}: cannot be read ({error.strerror})") from error
    metrics, per_class = from_log(text) if "copypaste:" in text else from_metrics(text)
    whole = {branch: values for branch, values in metrics.items() if all(m in values for m in BOX_METRICS)}
    if not whole:
        raise UserError(
            f"--import {path}: holds no evaluation; it must be Detectron2's metrics.json with bbox/AP, bbox/AP50 and "
            "bbox/AP75, or a log with its copypaste lines"
        )
    return Trial(
        source=path,
        run=path.parent,
        row=row,
        task=task,
        status=DONE,
        seed=None,
        metrics={branch: {m: values[m] for m in BOX_METRICS} for branch, values in whole.items()},
        per_class={branch: per_class[branch] for branch in whole if branch in per_class},
        imported=True,
    )


Branches = dict[str, dict[str, float]]


def from_metrics(text: str) -> tuple[Branches, Branches]:
    """Branch to metrics (`bbox/AP50`) and to AP per class (`bbox/AP-cat`), of the last line with an evaluation."""
    metrics: Branches = {}
    per_class: Branches = {}
    for line in text.splitlines():
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            continue  # the last line of a killed run may be cut short
        if not isinstance(content, dict) or "bbox/AP" not in content:
            continue
        metrics, per_class = {}, {}
        for key, value in content.items():
            branch, slash, name = key.partition("/")
            if not slash or not isinstance(value, (int, float)) or not math.isfinite(value):
                continue
            if name.startswith("AP-"):
                per_class.setdefault(branch, {})[name[3:]] = float(value)
            else:
                metrics.setdefault(branch, {})[name] = float(value)
    return metrics, per_class


def from_log(text: str) -> tuple[Branches, Branches]:
    """The last `copypaste` block of each branch: a `Task:` line, a line of names, a line of values."""
    metrics: Branches = {}
    branch: str | None = None
    names: list[str] = []
    for line in text.splitlines():
        found = COPYPASTE.search(line)
        if not found:
            continue
        content = found.group(1)
        if task := TASK.match(content):
            branch, names = task.group(1), []
        elif branch and not names:
            names = content.split(",")
        elif branch:
            metrics[branch] = _pairs(names, content.split(","))
            branch = None
    return metrics, {}


def _pairs(names: list[str], values: list[str]) -> dict[str, float]:
    pairs = {}
    for name, value in zip(names, values, strict=False):
        try:
            number = float(value)
        except ValueError:
            continue
        if math.isfinite(number):
            pairs[name] = number
    return pairs
