"""The published numbers, read from `configs/expected/`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from common.config import load_yaml
from common.environment import ROOT
from common.errors import UserError

FOLDER = ROOT / "configs" / "expected"
LAYOUTS = ("table5", "table4", "ablations")


@dataclass(frozen=True)
class ExpectedColumn:
    """A column (or group of metrics) of the published table; `trials` is how many runs its entries average."""

    key: str
    label: str
    branch: str
    trials: int


@dataclass(frozen=True)
class ExpectedTask:
    """A task's columns in the published table, and what a run must have been made with to stand beside it."""

    columns: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str | None = None


@dataclass(frozen=True)
class ExpectedRow:
    """A published row: column key to the values of the table's metrics in order; None where a word is printed."""

    key: str
    label: str
    group: str | None
    note: str | None
    source: str | None
    values: Mapping[str, list[float | None]]
    stds: Mapping[str, list[float | None]]
    words: Mapping[str, list[str]]
    tasks: Mapping[str, list[float | None]]
    """Values published for one task alone (calibration targets)."""
    trials: int | None


@dataclass(frozen=True)
class Expected:
    """One published table."""

    layout: str
    title: str
    source: str
    bold_within: float | None
    row_head: str
    metrics: tuple[str, ...]
    columns: Mapping[str, ExpectedColumn]
    tasks: Mapping[str, ExpectedTask]
    rows: Mapping[str, ExpectedRow]

    def column_of(self, task: str, branch: str) -> ExpectedColumn | None:
        """The published column that a task's branch belongs to."""
        found = self.tasks.get(task, ExpectedTask()).columns
        return next((self.columns[key] for key in found if self.columns[key].branch == branch), None)

    def published(self, row: str | None, task: str, branch: str) -> dict[str, float | None]:
        """Metric to published value for a row, task and branch; empty where nothing was published."""
        return self._look_up(row, task, branch, "values")

    def published_std(self, row: str | None, task: str, branch: str) -> dict[str, float | None]:
        """Metric to published standard deviation; empty where none was published."""
        return self._look_up(row, task, branch, "stds")

    def word(self, row: str | None, task: str, branch: str) -> str | None:
        """What the paper prints instead of a number (`unstable`, `NaN`), if it does."""
        column = self.column_of(task, branch)
        words = self.rows[row].words.get(column.key) if row and row in self.rows and column else None
        return words[0] if words else None

    def _look_up(self, row: str | None, task: str, branch: str, which: str) -> dict[str, float | None]:
        if row is None or row not in self.rows:
            return {}
        found, column = self.rows[row], self.column_of(task, branch)
        values = getattr(found, which).get(column.key) if column else None
        if which == "values" and column and task in found.tasks:
            values = found.tasks[task]
        return dict(zip(self.metrics, values, strict=True)) if values else {}


@lru_cache(maxsize=8)
def load(layout: str, folder: Path = FOLDER) -> Expected:
    """A published table by its layout's name.

    Raises:
        UserError: the file is missing or lacks a field.
    """
    path = folder / f"{layout}.yaml"
    content = load_yaml(path)
    try:
        return _parse(content)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: {error} is missing or malformed; restore the file from the repository") from error


def _parse(content: Mapping[str, Any]) -> Expected:
    return Expected(
        layout=content["layout"],
        title=content["title"],
        source=content["source"],
        bold_within=content["bold_within"],
        row_head=content["row_head"],
        metrics=tuple(content["metrics"]),
        columns={c["key"]: ExpectedColumn(**c) for c in content["columns"]},
        tasks={key: _task(value) for key, value in content["tasks"].items()},
        rows={row["key"]: _row(row) for row in content["rows"]},
    )


def _task(value: Mapping[str, Any]) -> ExpectedTask:
    return ExpectedTask(tuple(value["columns"]), value.get("settings", {}), value.get("note"))


def _row(row: Mapping[str, Any]) -> ExpectedRow:
    return ExpectedRow(
        key=row["key"],
        label=row["label"],
        group=row.get("group"),
        note=row.get("note"),
        source=row.get("source"),
        values=row.get("values", {}),
        stds=row.get("stds", {}),
        words=row.get("words", {}),
        tasks=row.get("tasks", {}),
        trials=row.get("trials"),
    )
