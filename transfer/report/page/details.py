"""Provenance for the template: what all trials of a cell share stands once, what differs stands in the trial's line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transfer.report import provenance
from transfer.report.model import Cell, Column, Mark, Table
from transfer.report.page.tables import detail_id, trial_figures
from transfer.report.records import Search, Trial


@dataclass(frozen=True)
class TrialLine:
    """One trial: its id on the page, words for the columns of the cell's list, and facts that are its alone."""

    id: str
    seed: str
    status: str
    figures: str
    lr: str
    seconds: str
    folder: str
    own: list[tuple[str, str]]


@dataclass(frozen=True)
class Detail:
    """One cell's provenance."""

    id: str
    title: str
    trials: list[TrialLine]
    shared: list[tuple[str, str]]
    marks: tuple[Mark, ...]


def details(table: Table, searches: Sequence[Search]) -> list[Detail]:
    """The provenance of every cell that has trials, or waits for some."""
    made = []
    for row in table.rows:
        for column in table.columns:
            cell = row.cells.get(column.key)
            if cell is not None and (cell.trials or cell.waiting):
                title = f"{row.label} · {column.label}"
                search = provenance.of_search(searches, row.key, column.task)
                made.append(_detail(detail_id(table, row, column), title, cell, column, search))
    return made


def _detail(name: str, title: str, cell: Cell, column: Column, search: dict[str, Any] | None) -> Detail:
    facts = [flat(_told(provenance.of_trial(trial))) for trial in cell.trials]
    shared = {key: value for key, value in facts[0].items() if all(f.get(key) == value for f in facts)} if facts else {}
    lines = []
    for index, (trial, found) in enumerate(zip(cell.trials, facts, strict=True)):
        own = [(key, value) for key, value in found.items() if key not in shared]
        lines.append(_line(f"{name}-{index + 1}", trial, trial in cell.counted, column, own))
    chosen = flat({"lr search": search or {}})
    return Detail(name, title, lines, [*chosen.items(), *shared.items()], cell.marks)


def _line(name: str, trial: Trial, counted: bool, column: Column, own: list[tuple[str, str]]) -> TrialLine:
    metrics = {branch: dict(values) for branch, values in trial.metrics.items()}
    status = "imported" if trial.imported else trial.status
    seconds = trial.timing.get("train_seconds")
    return TrialLine(
        id=name,
        seed="unknown" if trial.seed is None else str(trial.seed),
        status=status if counted or trial.status != "done" else f"{status}, left out",
        figures=trial_figures(column, metrics),
        lr=str(trial.settings.get("lr", "unknown")),
        seconds=f"{seconds:.0f} s" if isinstance(seconds, (int, float)) else "unknown",
        folder=str(trial.folder),
        own=own,
    )


SHOWN_ELSEWHERE = ("result", "folder", "status", "seed", "lr", "metrics", "per_class", "timing", "gpu_hours", "commit")


def _told(facts: dict[str, Any]) -> dict[str, Any]:
    """Provenance without what the trial's line, the class table and the cost table show."""
    told = {key: value for key, value in facts.items() if key not in SHOWN_ELSEWHERE}
    told["settings"] = {key: value for key, value in facts["settings"].items() if key != "lr"}
    return told


def flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested facts as `weights.sha256` → text; what is empty is left out."""
    found: dict[str, str] = {}
    for key, value in facts.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found.update(flat(value, f"{name}."))
        elif value not in (None, [], "", ()):
            found[name] = _text(value)
    return found


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)) and all(isinstance(item, (str, int, float)) for item in value):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, default=str)
