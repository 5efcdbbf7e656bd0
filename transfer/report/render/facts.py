"""What the page says below its tables: the provenance of every cell, what the results cost, and the environments."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ssl_transfer.config import flatten
from ssl_transfer.errors import abbreviate
from transfer.report.collection import DONE, PretrainingRun, Trial, spent_hours, transfer_command
from transfer.report.figures.style import slug
from transfer.report.model import Cell, Column, Flag, Report, Row, Table

FOLDER = Path(__file__).resolve().parent / "page"
SHOWN_ELSEWHERE = ("result", "status", "seed", "lr", "metrics", "per_class", "timing", "gpu_hours", "commit")
SHARED_ABOVE = 60
"""Cells of a column above which what they share is listed once: with thousands it would be most of the page."""


@dataclass(frozen=True)
class TrialFacts:
    """One trial on the page: its id, its status as text, the facts that its cell's trials do not share, its command."""

    id: str
    trial: Trial
    status: str
    own: list[tuple[str, str]]
    command: str


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
    facts = [flat_texts(_remaining_facts(trial.provenance(), report.show_machine)) for trial in cell.trials]
    shared = {key: value for key, value in facts[0].items() if all(f.get(key) == value for f in facts)} if facts else {}
    name, counted = details_id(table, row, column), {id(trial) for trial in cell.counted}
    trials = []
    for index, (trial, found) in enumerate(zip(cell.trials, facts, strict=True)):
        status = "imported" if trial.imported else trial.status
        if trial.status == DONE and id(trial) not in counted:
            status += ", left out"
        own = [(key, value) for key, value in found.items() if key not in shared]
        command = transfer_command(trial, searched=report.search_of(row.key, column.task) is not None)
        trials.append(TrialFacts(f"{name}-{index + 1}", trial, status, own, command))
    search = report.search_of(row.key, column.task)
    chosen = flat_texts({"lr search": search.provenance() if search else {}})
    return CellDetails(name, row, column, trials, [*chosen.items(), *shared.items()], cell.flags)


def _remaining_facts(facts: dict[str, Any], show_machine: bool) -> dict[str, Any]:
    """Provenance without what the trial's line, the class table and the cost table show, and without the host."""
    remaining = {key: value for key, value in facts.items() if key not in SHOWN_ELSEWHERE}
    remaining["settings"] = {key: value for key, value in facts["settings"].items() if key != "lr"}
    remaining["environment"] = _environment(facts["environment"], show_machine)
    return remaining


def _environment(facts: Mapping[str, Any], show_machine: bool) -> dict[str, Any]:
    devices = {"devices": _describe_devices(facts)} if facts.get("devices") else {}
    return {key: value for key, value in facts.items() if show_machine or key != "host"} | devices


@lru_cache(maxsize=1)
def _readable() -> dict[str, dict[str, str]]:
    """`sections`: first part of a fact's key to its heading, in the page's order; `names`: other parts to names."""
    return json.loads((FOLDER / "names.json").read_text(encoding="utf-8"))


def by_section(facts: Iterable[tuple[str, str]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(heading, its facts with readable names) of facts such as `settings.total_batch`."""
    sections, names = _readable()["sections"], _readable()["names"]
    found: dict[str, list[tuple[str, str]]] = {section: [] for section in sections}
    for key, value in facts:
        section, dot, rest = key.partition(".")
        section, rest = (section, rest) if dot and section in sections else ("", key)
        name = " ".join(names.get(part, part.replace("_", " ")) for part in rest.split("."))
        found[section].append((name[:1].upper() + name[1:], value))
    return [(sections[section], named) for section, named in found.items() if named]


def flat_texts(facts: Mapping[str, Any]) -> dict[str, str]:
    """Nested facts as `weights.sha256` → text; what is empty is left out."""
    return {name: _fact_text(value) for name, value in flatten(facts).items() if value not in (None, [], "", (), {})}


def _fact_text(value: Any) -> str:
    if isinstance(value, (list, tuple)) and all(isinstance(item, (str, int, float)) for item in value):
        return ("; " if any(", " in str(item) for item in value) else ", ").join(map(str, value))
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


def summary(report: Report) -> list[tuple[str, str]]:
    """When and of what the page was made, as (name, text)."""
    trials, runs = report.trials, [run for run in report.pretraining if run.result]
    environments = [trial.environment for trial in trials] + [run.result.environment for run in runs if run.result]
    commits = Counter(str(one["commit"])[:12] for one in environments if one.get("commit"))
    lines = [("Date", datetime.now(timezone.utc).strftime("%Y-%m-%d"))]
    if trials or report.pretraining:
        lines.append(("Results", _count_runs(len(trials), len(report.pretraining))))
        lines.append(("Commit", abbreviate([commit for commit, _ in commits.most_common()]) or "unknown"))
        lines.append(("GPU-hours", _describe_gpu_hours(report)))
    return lines


def _describe_gpu_hours(report: Report) -> str:
    """The hours of the results that know them, and how many others there are."""
    costs = [line for run in report.pretraining if (line := _pretraining_cost(run))]
    spent = [(line.devices, line.gpu_hours) for line in costs]
    spent += [(_describe_devices(trial.environment), trial.gpu_hours) for trial in report.trials]
    known = [hours for _, hours in spent if hours is not None]
    on_cpu = sum(devices == "cpu" for devices, _ in spent)
    unknown = len(spent) - len(known) - on_cpu
    if spent and on_cpu == len(spent):
        return "none, all results are from CPUs"
    parts = [f"{sum(known):.3g}" if sum(known) < 999.5 else f"{sum(known):,.0f}"] if known else []
    others = {"unknown": unknown, "on CPUs": on_cpu}
    return "; ".join([*parts, *(f"{word}: {count} of {len(spent)} results" for word, count in others.items() if count)])


def duration(hours: float | None) -> str:
    """Format as `42 min`, `5.25 h` or `1,234 h`; `unknown` without a value."""
    if hours is None:
        return "unknown"
    if hours * 60 < 59.5:
        return f"{hours * 60:.0f}\xa0min" if hours * 60 >= 1 else f"{hours * 3600:.0f}\xa0s"
    return f"{hours:.3g}\xa0h" if hours < 999.5 else f"{hours:,.0f}\xa0h"


def _count_runs(trials: int, pretraining: int) -> str:
    """`6 trials, 1 pre-training run`."""
    parts = [(trials, "trial"), (pretraining, "pre-training run")]
    return ", ".join(f"{count:,} {word}{'' if count == 1 else 's'}" for count, word in parts if count)


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
    """(what was made with it, its facts) of every distinct environment, the most frequent first."""
    runs = [run.result.environment for run in report.pretraining if run.result]
    trials, pretraining = (
        Counter(tuple(flat_texts(_environment(facts, report.show_machine)).items()) for facts in found if facts)
        for found in ([trial.environment for trial in report.trials], runs)
    )
    return [(_count_runs(trials[key], pretraining[key]), key) for key, _ in (trials + pretraining).most_common()]
