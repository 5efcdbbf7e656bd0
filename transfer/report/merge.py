"""Several run folders → one collection. Rows of one name are one row only where they stand for the same weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from transfer.report.records import Collection, RowInfo


def merge(parts: Sequence[Collection]) -> Collection:
    """All parts as one, in order.

    A row of a later part whose trials were made from other weights than those of the same name before it becomes a row
    of its own, named after its run folder: `simsiam` and `simsiam@second`.
    """
    whole = Collection()
    for part in parts:
        _add(whole, _renamed(part, _conflicts(whole, part)))
    return whole


def apart(found: Collection) -> Collection:
    """Loose results with a row for each weights file: two files of one name become `name@sha256`, first eight digits.

    Only an experiment says that several files are one row; without one, the weights are the row.
    """
    several = {row for row, files in _weights(found).items() if len(files) > 1}
    if not several:
        return found
    trials = [
        replace(trial, row=f"{trial.row}@{str(trial.weights.get('sha256'))[:8]}") if trial.row in several else trial
        for trial in found.trials
    ]
    rows = {trial.row: found.rows.get(trial.row) or RowInfo(trial.row, trial.row, trial.row) for trial in trials}
    return replace(found, trials=trials, rows=rows)


def _conflicts(whole: Collection, part: Collection) -> dict[str, str]:
    """Old to new key of the part's rows that would mix weights."""
    here, there = _weights(whole), _weights(part)
    return {
        key: _free(f"{key}@{_name(part)}", whole.rows)
        for key in part.rows
        if here.get(key) and there.get(key) and here[key] != there[key]
    }


def _weights(found: Collection) -> dict[str, set[str]]:
    made: dict[str, set[str]] = {}
    for trial in found.trials:
        made.setdefault(trial.row, set()).add(str(trial.weights.get("sha256")))
    return made


def _name(part: Collection) -> str:
    return Path(part.runs[0]).resolve().name if part.runs else "other"


def _free(key: str, taken: Mapping[str, RowInfo]) -> str:
    number, name = 2, key
    while name in taken:
        name, number = f"{key}-{number}", number + 1
    return name


def _renamed(part: Collection, names: Mapping[str, str]) -> Collection:
    if not names:
        return part
    name = _name(part)
    rows = {}
    for key, info in part.rows.items():
        new = names.get(key, key)
        rows[new] = info if new == key else RowInfo(new, f"{info.label} ({name})", info.expected)
    return replace(
        part,
        rows=rows,
        trials=[replace(trial, row=names.get(trial.row, trial.row)) for trial in part.trials],
        asked={(names.get(row, row), task): count for (row, task), count in part.asked.items()},
        waiting={(names.get(row, row), task): lines for (row, task), lines in part.waiting.items()},
        searches=[replace(search, row=names.get(search.row, search.row)) for search in part.searches],
    )


def _add(whole: Collection, part: Collection) -> None:
    for info in part.rows.values():
        whole.add_row(info)
    for task in part.tasks:
        whole.add_task(task)
    for place, count in part.asked.items():
        whole.asked[place] = max(count, whole.asked.get(place, 0))
    for place, lines in part.waiting.items():
        whole.waiting.setdefault(place, []).extend(lines)
    whole.trials += part.trials
    whole.pretraining += part.pretraining
    whole.searches += part.searches
    whole.skipped += part.skipped
    whole.superseded += part.superseded
    whole.title = whole.title or part.title
