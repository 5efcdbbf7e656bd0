"""What the results cost, and what they were made with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transfer.report.model import Report
from transfer.report.page.details import flat
from transfer.report.records import Pretraining, Trial


@dataclass(frozen=True)
class Cost:
    """One line of the cost table; `gpu_hours` is None for work on a CPU or with no times recorded."""

    what: str
    runs: int
    devices: str
    hours: float | None
    gpu_hours: float | None


def costs(report: Report) -> list[Cost]:
    """Pre-training runs, then fine-tuning by row and task."""
    labels = {row.key: row.label for table in report.tables for row in table.rows}
    lines = [_pretraining(run) for run in report.pretraining if run.result]
    places = dict.fromkeys((trial.row, trial.task) for trial in report.trials if not trial.imported)
    for row, task in places:
        trials = [t for t in report.trials if (t.row, t.task) == (row, task) and not t.imported]
        lines.append(_trials(f"{labels.get(row, row)} on {task}", trials))
    return lines


def total(lines: Iterable[Cost]) -> float | None:
    """GPU-hours of all lines that have any; None where none has."""
    known = [line.gpu_hours for line in lines if line.gpu_hours is not None]
    return sum(known) if known else None


def _pretraining(run: Pretraining) -> Cost:
    seconds = run.result.get("seconds")
    hours = seconds / 3600 if isinstance(seconds, (int, float)) else None
    devices = _devices(run.result.get("environment") or {})
    processes = run.result.get("num_processes")
    gpu_hours = None
    if hours is not None and isinstance(processes, int) and devices not in ("cpu", "unknown"):
        gpu_hours = hours * processes
    return Cost(f"pre-training {run.name}", 1, devices, hours, gpu_hours)


def _trials(what: str, trials: Sequence[Trial]) -> Cost:
    hours = [_hours(trial) for trial in trials]
    gpu = [trial.gpu_hours for trial in trials]
    devices = ", ".join(dict.fromkeys(_devices(trial.environment) for trial in trials))
    known = [h for h in hours if h is not None]
    known_gpu = [h for h in gpu if h is not None]
    return Cost(what, len(trials), devices, sum(known) if known else None, sum(known_gpu) if known_gpu else None)


def _hours(trial: Trial) -> float | None:
    known = [trial.timing.get(key) for key in ("train_seconds", "eval_seconds")]
    seconds = [float(s) for s in known if isinstance(s, (int, float))]
    return sum(seconds) / 3600 if seconds else None


def _devices(environment: Mapping[str, Any]) -> str:
    found = environment.get("devices")
    if not isinstance(found, list) or not found:
        return "unknown"
    counts = {name: found.count(name) for name in dict.fromkeys(map(str, found))}
    return ", ".join(name if count == 1 else f"{count} × {name}" for name, count in counts.items())


def environments(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """(how many results were made with it, its facts) of every distinct environment, the most frequent first."""
    counts: dict[tuple[tuple[str, str], ...], int] = {}
    for facts in [t.environment for t in report.trials] + [
        p.result.get("environment") or {} for p in report.pretraining
    ]:
        if facts:
            key = tuple(flat(facts).items())
            counts[key] = counts.get(key, 0) + 1
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    return [(f"{count} result{'s' if count > 1 else ''}", list(key)) for key, count in ranked]
