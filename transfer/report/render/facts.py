"""What the page says below its tables: the provenance of every cell, what the results cost, and the environments."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.config import flatten
from transfer.report.collection import DONE, PretrainingRun, Trial
from transfer.report.figures.style import slug
from transfer.report.model import Cell, Column, Flag, Report, Row, Table

SHOWN_ELSEWHERE = ("result", "folder", "status", "seed", "lr", "metrics", "per_class", "timing", "gpu_hours", "commit")


@dataclass(frozen=True)
class TrialFacts:
    """One trial on the page: its id, its status as text, and the facts that its cell's trials do not share."""

    id: str
    trial: Trial
    status: str
    own: list[tuple[str, str]]


@dataclass(frozen=True)
class CellDetails:
    """One cell's provenance. What all its trials share is listed once."""

    id: str
    row: Row
    column: Column
    trials: list[TrialFacts]
    shared: list[tuple[str, str]]
    flags: list[Flag]


@dataclass(frozen=True)
class CostLine:
    """One line of the cost table; `gpu_hours` is None for work on a CPU or if no times were recorded."""

    what: str
    runs: int
    devices: str
    hours: float | None
    gpu_hours: float | None


def details_id(table: Table, row: Row, column: Column) -> str:
    """The id of a cell's provenance on the page."""
    return f"cell-{slug(table.layout)}-{slug(row.key)}-{slug(column.key)}"


def cell_details(table: Table, report: Report) -> list[CellDetails]:
    """The provenance of every cell that has trials or waits for some."""
    return [
        _details(table, row, column, cell, report)
        for row in table.rows
        for column in table.columns
        if (cell := row.cells.get(column.key)) is not None and (cell.trials or cell.waiting)
    ]


def _details(table: Table, row: Row, column: Column, cell: Cell, report: Report) -> CellDetails:
    facts = [flat_texts(_remaining_facts(trial.provenance())) for trial in cell.trials]
    shared = {key: value for key, value in facts[0].items() if all(f.get(key) == value for f in facts)} if facts else {}
    name = details_id(table, row, column)
    trials = []
    for index, (trial, found) in enumerate(zip(cell.trials, facts, strict=True)):
        status = "imported" if trial.imported else trial.status
        if trial.status == DONE and trial not in cell.counted:
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
    trials = [trial for trial in report.trials if not trial.imported]
    for row, task in dict.fromkeys((trial.row, trial.task) for trial in trials):
        group = [trial for trial in trials if (trial.row, trial.task) == (row, task)]
        devices = ", ".join(dict.fromkeys(_describe_devices(trial.environment) for trial in group))
        hours, gpu_hours = sum_known(t.hours for t in group), sum_known(t.gpu_hours for t in group)
        lines.append(CostLine(f"{report.labels.get(row, row)} on {task}", len(group), devices, hours, gpu_hours))
    return [line for line in lines if line is not None]


def sum_known(values: Iterable[float | None]) -> float | None:
    """The sum of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _pretraining_cost(run: PretrainingRun) -> CostLine | None:
    if run.result is None:
        return None
    hours = None if run.result.seconds is None else run.result.seconds / 3600
    devices, processes = _describe_devices(run.result.environment), run.result.num_processes
    is_gpu = hours is not None and processes is not None and devices not in ("cpu", "unknown")
    gpu_hours = hours * processes if is_gpu else None  # type: ignore[operator]
    return CostLine(f"pre-training {run.name}", 1, devices, hours, gpu_hours)


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
