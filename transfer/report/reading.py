"""Result files → trials and runs: this project's own, and what Detectron2 writes."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_transfer.errors import UserError
from ssl_transfer.files import JSON_LIMIT, open_input, read_json
from ssl_transfer.formats import FileFormat, is_sealed, results
from ssl_transfer.formats.results import BoxMetrics, Comparable, EvaluationResult, PretrainResult, TransferResult
from transfer.report.collection import DONE, Trial

if TYPE_CHECKING:
    from ssl_transfer.formats.detections import Detections

BOX_METRICS = ("AP50", "AP", "AP75")
LAST_LINES = 200
"""Lines with an evaluation, of which the last one counts, that are kept of a large file."""
COPYPASTE = re.compile(r"copypaste: (.+?)\s*$")
TASK = re.compile(r"^Task: (\w+)$")
LOG_LIMIT = 1 << 36
"""Bytes of a log at most."""
Result = TransferResult | EvaluationResult | PretrainResult
MODELS: dict[str, type[Result]] = {
    results.TRANSFER: TransferResult,
    results.PRETRAIN: PretrainResult,
    results.EVALUATION: EvaluationResult,
}
Branches = dict[str, dict[str, float]]


def read_result(path: Path) -> tuple[Result, str]:
    """Read one result.json.

    Returns:
        The result, and how it was altered after it was written; empty where it was not.

    Raises:
        UserError: unreadable, not JSON, malformed, another program's file, or of an unknown version.
    """
    content = read_json(path, JSON_LIMIT)
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not an object")
    found = content.get("format")
    if found is None:
        raise UserError(f"{path}: has no 'format'; not a result of this project")
    if model := MODELS.get(str(found)):
        result = model.parse_unsealed(content, path)
        if not is_sealed(content, model):
            return result, "its content does not have its digest"
        return result, (isinstance(result, TransferResult) and result.find_contradiction()) or ""
    if str(found).partition("/")[0] in {known.partition("/")[0] for known in MODELS}:
        raise UserError(f"{path}: format {found!r} is of another version than this code reads")
    raise UserError(f"{path}: format {found!r} is not a result of this project")


def transfer_trial(result: TransferResult, source: Path, row: str | None = None) -> Trial:
    """Convert the result of a fine-tuning trial.

    Args:
        result: the content of its result.json.
        source: the file.
        row: the experiment's row; without an experiment, the weights file's stem, or the weights' name.

    Raises:
        UserError: a metric or the weights' name is missing.
    """
    name = result.weights.name
    if row is None and not name:
        raise UserError(f"{source}: weights.name: is missing")
    metrics: Branches = {}
    per_class: dict[str, dict[str, float | None]] = {}
    if result.status == DONE:
        branches = {branch: values for branch, values in (result.metrics or {}).items() if values is not None}
        if not branches:
            raise UserError(f"{source}: metrics: holds neither bbox nor segm")
        metrics = {branch: _box_metrics(values, f"{source}: metrics.{branch}") for branch, values in branches.items()}
        per_class = {branch: _class_metrics(values) for branch, values in branches.items()}
    path = result.weights.path
    return Trial(
        source=source,
        row=row or (Path(path).stem if path else str(name)),
        task=result.task,
        metrics=metrics,
        per_class=per_class,
        reasons=_reasons(result.comparable),
        detections=_detections(result, source.parent) if metrics else None,
        **_sections(result),
    )


def _detections(result: TransferResult, folder: Path) -> tuple[Path, ...] | None:
    """The files of the trial's detections: its own, then the one that `--eval-only` wrote; None without either."""
    from ssl_transfer.formats.detections import EVALUATED_FILE  # loads numpy

    own = [Path(result.detections.file).name] if result.detections else []
    found = (folder / name for name in (*own, EVALUATED_FILE))
    return tuple(file for file in found if file.is_file()) or None


def evaluation_trial(result: EvaluationResult, source: Path, row: str | None = None) -> Trial | None:
    """Convert the result of a linear evaluation; None for another kind of evaluation, which is in no table.

    Raises:
        UserError: the accuracy, the weights' name or the epochs of their pre-training are missing.
    """
    if result.kind != "linear":
        return None
    origin = result.weights.origin or {}
    epochs, name = origin.get("epochs"), row or origin.get("recipe") or result.weights.name
    if not isinstance(epochs, int):
        raise UserError(f"{source}: weights.origin.epochs: is missing, so the column is unknown")
    if not isinstance(name, str):
        raise UserError(f"{source}: weights.name: is missing")
    metrics: Branches = {}
    if result.status == DONE:
        top1 = (result.metrics or {}).get("top1")
        if top1 is None or not 0 <= top1 <= 100:
            raise UserError(f"{source}: metrics.top1: must be a number in 0 … 100, not {top1}")
        metrics = {"linear": {"top1": top1}}
    return Trial(
        source=source,
        row=name,
        task=f"linear_{epochs}ep",
        metrics=metrics,
        reasons=_reasons(result.comparable or Comparable()),
        **_sections(result),
    )


def _sections(result: TransferResult | EvaluationResult) -> dict[str, Any]:
    """What both kinds of result have in common, as fields of a `Trial`."""
    return {
        "status": result.status,
        "seed": result.seed,
        "toy": result.toy,
        "divergence": None if result.divergence is None else result.divergence.as_dict(),
        "settings": result.settings.as_dict() if isinstance(result.settings, FileFormat) else result.settings,
        "weights": dict(result.weights),
        "config": result.config,
        "guards": getattr(result, "guards", {}),
        "environment": result.environment,
        "timing": result.timing,
    }


def _box_metrics(values: BoxMetrics, where: str) -> dict[str, float]:
    found = {}
    for name in BOX_METRICS:
        found[name] = getattr(values, name)
        if found[name] is None:
            raise UserError(f"{where}.{name}: is missing")
    return found


def _class_metrics(values: BoxMetrics) -> dict[str, float | None]:
    """AP per class; None instead of NaN."""
    return {name: v if v is not None and math.isfinite(v) else None for name, v in (values.per_class or {}).items()}


def _reasons(comparable: Comparable) -> tuple[str, ...]:
    return tuple(comparable.reasons) or (() if comparable.ok else ("no reason recorded",))


def imported_trial(path: Path, row: str, task: str) -> Trial:
    """Read the last evaluation in a Detectron2 `metrics.json` (JSON lines) or in a log's `copypaste` lines.

    Args:
        path: the file.
        row: key of the table's row to put it in.
        task: key of the task it was run on, which the file does not hold.

    Raises:
        UserError: the file is missing, or holds no complete evaluation.
    """
    logged, measured = deque[str](maxlen=LAST_LINES), deque[str](maxlen=LAST_LINES)
    try:
        with open_input(path, LOG_LIMIT) as stream:  # never held whole
            for piece in iter(lambda: stream.readline(1 << 22), b""):
                if b"copypaste:" in piece or b'"bbox/AP"' in piece:
                    (logged if b"copypaste:" in piece else measured).append(piece.decode(errors="replace"))
        found, per_class = _parse_log(logged) if logged else _parse_metrics(measured)
    except OSError as error:
        raise UserError(f"--import {path}: cannot be read ({error.strerror})") from error
    complete = {branch: values for branch, values in found.items() if all(m in values for m in BOX_METRICS)}
    if not complete:
        raise UserError(
            f"--import {path}: holds no evaluation; it must be Detectron2's metrics.json with bbox/AP, bbox/AP50 and "
            "bbox/AP75, a log with its copypaste lines, or COCO's result JSON, a list of detections"
        )
    return Trial(
        source=path,
        row=row,
        task=task,
        status=DONE,
        seed=None,
        metrics={branch: {m: values[m] for m in BOX_METRICS} for branch, values in complete.items()},
        per_class={branch: per_class[branch] for branch in complete if branch in per_class},
        imported=True,
    )


def detected_trial(found: Detections, path: Path, row: str, task: str) -> Trial:
    """The trial behind detections that were made elsewhere.

    Raises:
        UserError: no AP can be computed, because the split has no object.
    """
    from transfer.resampling import weighted_ap  # loads numpy

    metrics: Branches = {}
    per_class: dict[str, dict[str, float | None]] = {}
    for branch, matches in found.matches.items():
        metrics[branch] = weighted_ap.average_precision(matches, len(found.classes), found.metric)
        each = weighted_ap.per_class(matches, len(found.classes), found.metric)["AP"].tolist()
        per_class[branch] = {name: v if math.isfinite(v) else None for name, v in zip(found.classes, each, strict=True)}
        if not math.isfinite(metrics[branch]["AP"]):
            raise UserError(f"--import {path}: {found.test_split} has no object to find")
    return Trial(
        source=path,
        row=row,
        task=task,
        status=DONE,
        seed=None,
        metrics=metrics,
        per_class=per_class,
        toy=found.toy,
        imported=True,
        detections=found,
    )


def _parse_metrics(lines: Iterable[str]) -> tuple[Branches, Branches]:
    """Branch to metrics (`bbox/AP50`) and to AP per class (`bbox/AP-cat`), of the last line with an evaluation."""
    metrics: Branches = {}
    per_class: Branches = {}
    for line in lines:
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            continue  # the last line of a killed run may be cut short
        if not isinstance(content, dict) or "bbox/AP" not in content:
            continue
        metrics, per_class = {}, {}
        for key, value in content.items():
            branch, slash, name = key.partition("/")
            if not slash or not isinstance(value, (int, float)) or not math.isfinite(value):
                continue
            target, name = (per_class, name[3:]) if name.startswith("AP-") else (metrics, name)
            target.setdefault(branch, {})[name] = float(value)
    return metrics, per_class


def _parse_log(lines: Iterable[str]) -> tuple[Branches, Branches]:
    """The last `copypaste` block of each branch: a `Task:` line, a line of names, a line of values."""
    metrics: Branches = {}
    branch: str | None = None
    names: list[str] = []
    for line in lines:
        found = COPYPASTE.search(line)
        if not found:
            continue
        content = found.group(1)
        if task := TASK.match(content):
            branch, names = task.group(1), []
        elif branch and not names:
            names = content.split(",")
        elif branch:
            metrics[branch] = _numbers(names, content.split(","))
            branch = None
    return metrics, {}


def _numbers(names: list[str], values: list[str]) -> dict[str, float]:
    numbers = {}
    for name, value in zip(names, values, strict=False):
        with contextlib.suppress(ValueError):
            numbers[name] = float(value)
    return {name: number for name, number in numbers.items() if math.isfinite(number)}
