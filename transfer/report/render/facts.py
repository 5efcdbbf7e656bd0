"""What the page says below its tables: the provenance of every cell, what the results cost, and the environments."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ssl_transfer.config import flatten
from transfer.report.collection import DONE, PretrainingRun, Trial, spent_hours
from transfer.report.figures.style import slug
from transfer.report.model import Cell, Column, Flag, Report, Row, Table

SHOWN_ELSEWHERE = ("result", "folder", "status", "seed", "lr", "metrics", "per_class", "timing", "gpu_hours", "commit")

SHARED_ABOVE = 60
"""Cells of a column above which what they share is listed once: with thousands it would be most of the page."""


@dataclass(frozen=True)
class TrialFacts:
    """One trial on the page: its id, its status as text, and the facts that its cell's trials do not share."""

    id: str
    trial: Trial
    status: str
    own: list[tuple[str, str]]


class ColumnFacts(NamedTuple):
    """What nearly all cells of a long column share; listed once."""

    id: str
    column: Column
    facts: dict[str, str]


@dataclass(frozen=True)
class CellDetails:
    """One cell's provenance. What all its trials share is listed once.

    Attributes:
        of_column: the column's facts, which `shared` then lacks; None if `shared` has everything.
    """

    id: str
    row: Row
    column: Column
    trials: list[TrialFacts]
    shared: list[tuple[str, str]]
    flags: list[Flag]
    of_column: ColumnFacts | None = None


@dataclass(frozen=True)
class CostLine:
    """One line of the cost table.

    `gpu_hours` is None for work on a CPU or if no times were recorded, `attempts` if each run had one.
    """

    what: str
    runs: int
    attempts: int | None
    devices: str
    hours: float | None
    gpu_hours: float | None


def details_id(table: Table, row: Row, column: Column) -> str:
    """The id of a cell's provenance on the page."""
    return f"cell-{slug(table.layout)}-{slug(row.key)}-{slug(column.key)}"


def cell_details(table: Table, report: Report) -> list[CellDetails]:
    """The provenance of every cell that has trials or waits for some."""
    made = [
        _details(table, row, column, cell, report)
        for row in table.rows
        for column in table.columns
        if (cell := row.cells.get(column.key)) is not None and (cell.trials or cell.waiting)
    ]
    long = {column.key: facts for column in table.columns if (facts := _column_facts(table, column, made))}
    return [_without(one, long[one.column.key]) if one.column.key in long else one for one in made]


def _column_facts(table: Table, column: Column, details: Iterable[CellDetails]) -> ColumnFacts | None:
    cells = [one for one in details if one.column is column and one.trials]
    counts = Counter(fact for one in cells for fact in one.shared)
    facts = {key: value for (key, value), count in counts.items() if count >= 0.9 * len(cells)}
    found = ColumnFacts(f"facts-{slug(table.layout)}-{slug(column.key)}", column, facts)
    return found if len(cells) > SHARED_ABOVE and facts else None


def _without(details: CellDetails, column: ColumnFacts) -> CellDetails:
    """The cell's facts without the column's; all of them if it lacks one, such as an imported trial's settings."""
    if not column.facts.keys() <= {key for key, _ in details.shared}:
        return details
    own = [(key, value) for key, value in details.shared if column.facts.get(key) != value]
    return replace(details, shared=own, of_column=column)


def _details(table: Table, row: Row, column: Column, cell: Cell, report: Report) -> CellDetails:
    facts = [flat_texts(_remaining_facts(trial.provenance())) for trial in cell.trials]
    shared = {key: value for key, value in facts[0].items() if all(f.get(key) == value for f in facts)} if facts else {}
    name, counted = details_id(table, row, column), {id(trial) for trial in cell.counted}
    trials = []
    for index, (trial, found) in enumerate(zip(cell.trials, facts, strict=True)):
        status = "imported" if trial.imported else trial.status
        if trial.status == DONE and id(trial) not in counted:
            status += ", left out"
        own = [(key, value) for key, value in found.items() if key not in shared]
        trials.append(TrialFacts(f"{name}-{index + 1}", trial, status, own))
    search = report.search_of(row.key, column.task)
    chosen = flat_texts({"lr search": search.provenance() if search else {}})
    return CellDetails(name, row, column, trials, [*chosen.items(), *shared.items()], cell.flags)


def _remaining_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """Provenance without what the trial's line, the class table and the cost table show."""
    remaining = {key: value for key, value in facts.items() if key not in SHOWN_ELSEWHERE}
    remaining["settings"] = {key: value for key, value in facts["settings"].items() if key != "lr"}
    return remaining


def flat_texts(facts: Mapping[str, Any]) -> dict[str, str]:
    """Nested facts as `weights.sha256` → text; what is empty is left out."""
    return {name: _fact_text(value) for name, value in flatten(facts).items() if value not in (None, [], "", (), {})}


def _fact_text(value: Any) -> str:
    if isinstance(value, (list, tuple)) and all(isinstance(item, (str, int, float)) for item in value):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def cost_lines(report: Report) -> list[CostLine]:
    """Pre-training runs, then fine-tuning by row and task."""
    lines = [_pretraining_cost(run) for run in report.pretraining]
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in report.trials:
        if not trial.imported:
            groups.setdefault((trial.row, trial.task), []).append(trial)
    labels = report.labels
    for (row, task), group in groups.items():
        devices = ", ".join(dict.fromkeys(_describe_devices(trial.environment) for trial in group))
        hours, gpu_hours = sum_known(t.hours for t in group), sum_known(t.gpu_hours for t in group)
        attempts = _count_attempts(group)
        what = f"{labels.get(row, row)} on {task}"
        lines.append(CostLine(what, len(group), attempts, devices, hours, gpu_hours))
    return [line for line in lines if line is not None]


def sum_known(values: Iterable[float | None]) -> float | None:
    """The sum of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _count_attempts(runs: Sequence[Trial | PretrainingRun]) -> int | None:
    count = sum(max(len(run.attempts), 1) for run in runs)
    return count if count > len(runs) else None


def _pretraining_cost(run: PretrainingRun) -> CostLine | None:
    if run.result is None:
        return None
    devices = _describe_devices(run.result.environment)
    hours, gpu_hours = spent_hours(run.attempts, run.result.seconds, run.result.num_processes)
    gpu_hours = None if devices in ("cpu", "unknown") else gpu_hours
    return CostLine(f"pre-training {run.name}", 1, _count_attempts([run]), devices, hours, gpu_hours)


def _describe_devices(environment: Mapping[str, Any]) -> str:
    found = environment.get("devices")
    if not isinstance(found, list) or not found:
        return "unknown"
    return ", ".join(name if count == 1 else f"{count} × {name}" for name, count in Counter(map(str, found)).items())


def environments(report: Report) -> list[tuple[str, Sequence[tuple[str, str]]]]:
    """(number of results made with it, its facts) of every distinct environment, the most frequent first."""
    found = [trial.environment for trial in report.trials]
    found += [run.result.environment for run in report.pretraining if run.result]
    counts = Counter(tuple(flat_texts(facts).items()) for facts in found if facts)
    return [(f"{count} result{'s' if count > 1 else ''}", key) for key, count in counts.most_common()]
