"""One result file → one record; a file that is broken or not ours raises `Unusable`, which says why in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transfer.report.records import DIVERGED, DONE, Pretraining, Search, Trial

TRANSFER, PRETRAIN, EVALUATION = "transfer-result/1", "pretrain-result/1", "evaluation-result/1"
BOX_METRICS = ("AP50", "AP", "AP75")


class Unusable(Exception):
    """The file is cut short, malformed, or somebody else's."""


def load(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        Unusable: unreadable, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise Unusable(f"cannot be read ({error.strerror})") from error
    except json.JSONDecodeError as error:
        raise Unusable(f"not JSON (line {error.lineno}: {error.msg}); cut short?") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise Unusable(f"not JSON ({error})") from error
    if not isinstance(value, dict):
        raise Unusable(f"holds a {type(value).__name__}, not an object")
    return value


def kind_of(content: Mapping[str, Any]) -> str:
    """Which of our result formats `content` is.

    Raises:
        Unusable: another program's file, or a version this code does not know.
    """
    found = content.get("format")
    if found in (TRANSFER, PRETRAIN, EVALUATION):
        return str(found)
    if found is None:
        raise Unusable("has no 'format'; not a result of this project")
    names = [known.partition("/")[0] for known in (TRANSFER, PRETRAIN, EVALUATION)]
    if str(found).partition("/")[0] in names:
        raise Unusable(f"format {found!r} is of another version than this code reads")
    raise Unusable(f"format {found!r} is not a result of this project")


def transfer_trial(content: Mapping[str, Any], source: Path, run: Path, row: str | None = None) -> Trial:
    """A fine-tuning trial.

    Args:
        content: the parsed result.json.
        source: where it lies.
        run: the folder the user named.
        row: the experiment's row; where there is no experiment, the weights file's stem, or the weights' name.

    Raises:
        Unusable: a field is missing or has an impossible value.
    """
    status = _one_of(content, "status", (DONE, DIVERGED))
    weights = _mapping(content, "weights")
    name = weights.get("name")
    if row is None and not (isinstance(name, str) and name):
        raise Unusable("weights.name is missing")
    metrics, per_class = _branches(content) if status == DONE else ({}, {})
    comparable = _mapping(content, "comparable")
    return Trial(
        source=source,
        run=run,
        row=row or _file_stem(weights) or str(name),
        task=_text(content, "task"),
        status=status,
        seed=_seed(content),
        metrics=metrics,
        per_class=per_class,
        toy=_flag(content, "toy"),
        reasons=_reasons(comparable),
        divergence=content.get("divergence"),
        settings=_mapping(content, "settings"),
        weights=weights,
        config=_block(content, "config"),
        guards=_block(content, "guards"),
        environment=_block(content, "environment"),
        timing=_block(content, "timing"),
    )


def evaluation_trial(content: Mapping[str, Any], source: Path, run: Path, row: str | None = None) -> Trial | None:
    """A linear evaluation; None for another kind of evaluation (kNN), which is no cell of a table.

    Raises:
        Unusable: a field is missing or has an impossible value.
    """
    if _text(content, "kind") != "linear":
        return None
    status = _one_of(content, "status", (DONE, DIVERGED))
    weights = _mapping(content, "weights")
    origin = weights.get("origin") or {}
    epochs = origin.get("epochs")
    if not isinstance(epochs, int):
        raise Unusable("weights.origin.epochs is missing: which column it belongs to is unknown")
    name = row or origin.get("recipe") or weights.get("name")
    if not isinstance(name, str):
        raise Unusable("weights.name is missing")
    values = _mapping(content, "metrics") if status == DONE else {}
    metrics = {"linear": {"top1": _percent(values, "metrics", "top1")}} if status == DONE else {}
    return Trial(
        source=source,
        run=run,
        row=name,
        task=f"linear_{epochs}ep",
        status=status,
        seed=_seed(content),
        metrics=metrics,
        toy=_flag(content, "toy"),
        reasons=_reasons(content.get("comparable") or {}),
        settings=_mapping(content, "settings"),
        weights=weights,
        config=_block(content, "config"),
        guards=_block(content, "guards"),
        environment=_block(content, "environment"),
        timing=_block(content, "timing"),
    )


def pretraining_run(content: Mapping[str, Any], folder: Path, name: str | None = None) -> Pretraining:
    """A finished pre-training run.

    Raises:
        Unusable: a field is missing.
    """
    return Pretraining(
        folder, name or str(content.get("recipe") or _text(content, "method")), _text(content, "status"), content
    )


def search(content: Mapping[str, Any], source: Path) -> Search:
    """An lr search's record.

    Raises:
        Unusable: a field is missing, or a point has no lr.
    """
    if content.get("format") != "lr-search/1":
        raise Unusable(f"format {content.get('format')!r} is not lr-search/1")
    points = content.get("points")
    if not isinstance(points, list) or not all(isinstance(p, dict) and _number(p.get("lr")) for p in points):
        raise Unusable("points must be a list of objects, each with an lr")
    chosen = content.get("chosen")
    return Search(
        source,
        _text(content, "row"),
        _text(content, "task"),
        str(content.get("split", "unknown")),
        _text(content, "metric"),
        tuple(points),
        float(chosen) if isinstance(chosen, (int, float)) else None,
    )


def _branches(content: Mapping[str, Any]) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float | None]]]:
    found = _mapping(content, "metrics")
    metrics: dict[str, dict[str, float]] = {}
    per_class: dict[str, dict[str, float | None]] = {}
    for branch, values in found.items():
        if values is None:
            continue
        if not isinstance(values, dict):
            raise Unusable(f"metrics.{branch} is not an object")
        metrics[branch] = {metric: _percent(values, f"metrics.{branch}", metric) for metric in BOX_METRICS}
        classes = values.get("per_class") or {}
        per_class[branch] = {str(c): float(v) if _number(v) else None for c, v in classes.items()}
    if not metrics:
        raise Unusable("metrics holds neither bbox nor segm")
    return metrics, per_class


def _percent(values: Mapping[str, Any], where: str, key: str) -> float:
    value = values.get(key)
    if not _number(value):
        raise Unusable(f"{where}.{key} is {'missing' if value is None else repr(value)}, not a number")
    if not 0 <= value <= 100:  # type: ignore[operator]
        raise Unusable(f"{where}.{key} is {value}, outside 0 … 100 per cent")
    return float(value)  # type: ignore[arg-type]


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _seed(content: Mapping[str, Any]) -> int | None:
    seed = content.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise Unusable(f"seed is {seed!r}, not a whole number")
    return seed


def _block(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = content.get(key)
    return value if isinstance(value, dict) else {}


def _file_stem(weights: Mapping[str, Any]) -> str | None:
    path = weights.get("path")
    return Path(path).stem if isinstance(path, str) and path else None


def _reasons(comparable: Mapping[str, Any]) -> tuple[str, ...]:
    reasons = tuple(str(reason) for reason in comparable.get("reasons") or ())
    return reasons or (() if comparable.get("ok", True) else ("no reason recorded",))


def _mapping(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = content.get(key)
    if not isinstance(value, dict):
        raise Unusable(f"{key} is {'missing' if value is None else 'not an object'}")
    return value


def _text(content: Mapping[str, Any], key: str) -> str:
    value = content.get(key)
    if not isinstance(value, str) or not value:
        raise Unusable(f"{key} is {'missing' if value is None else f'{value!r}, not a name'}")
    return value


def _flag(content: Mapping[str, Any], key: str) -> bool:
    value = content.get(key)
    if not isinstance(value, bool):
        raise Unusable(f"{key} is {'missing' if value is None else repr(value)}, not true or false")
    return value


def _one_of(content: Mapping[str, Any], key: str, valid: tuple[str, ...]) -> str:
    value = _text(content, key)
    if value not in valid:
        raise Unusable(f"{key} is {value!r}, not one of {', '.join(valid)}")
    return value
