"""Folders → records. An experiment's `graph.json` says what is current; other folders are searched for results."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.errors import UserError
from transfer.report import imported, reading
from transfer.report.merge import apart, merge
from transfer.report.reading import Unusable
from transfer.report.records import Collection, Pretraining, RowInfo, Skipped

RESULT, GRAPH, JOB, SEARCH, METRICS = "result.json", "graph.json", "job.json", "lr_search.json", "metrics.json"
SEARCH_ROLE = "lr_search"
TRIAL_KINDS = ("finetune", "evaluate")


def collect(folders: Iterable[Path]) -> Collection:
    """Everything below the named folders, an experiment's folder lying anywhere below them.

    A broken or foreign file is recorded in `skipped`. A result file found twice (folders that overlap) counts once.
    Rows of one name from several experiments are one row where they stand for the same weights, else one each.

    Raises:
        UserError: a folder does not exist or is not a folder.
    """
    parts: list[Collection] = []
    seen: set[Path] = set()
    runs = list(folders)
    for folder in runs:
        if not folder.is_dir():
            raise UserError(f"run folder {folder} {'is not a folder' if folder.exists() else 'does not exist'}")
        parts += _walk(folder, seen)
    found = merge(parts)
    found.runs = runs
    return found


def take_in(found: Collection, row: str, task: str, file: Path) -> None:
    """Add a trial run elsewhere; a file taken in before counts once.

    Raises:
        UserError: the file is missing or holds no evaluation.
    """
    trial = imported.read(file, row, task)
    if any(known.source.resolve() == file.resolve() for known in found.trials):
        return
    found.trials.append(trial)
    found.add_row(RowInfo(row, row, row))
    found.add_task(task)


def _walk(folder: Path, seen: set[Path]) -> Iterator[Collection]:
    """One collection for each experiment below `folder`, and one for all that lies outside of experiments."""
    loose = Collection(runs=[folder])
    for here, below, files in os.walk(folder):
        below.sort()
        place = Path(here)
        if GRAPH in files:
            try:
                yield _experiment(place, seen)
            except Unusable as error:
                loose.skipped.append(Skipped(place / GRAPH, str(error)))
            else:
                below.clear()
                continue
        if RESULT in files:
            _result(place / RESULT, loose, seen)
        if SEARCH in files:
            _search(place / SEARCH, loose)
    yield apart(loose)


def _experiment(folder: Path, seen: set[Path]) -> Collection:
    """An experiment's folder, read by its graph.

    Raises:
        Unusable: the graph is broken; the folder is searched for results instead.
    """
    graph = reading.load(folder / GRAPH)
    if graph.get("format") != "graph/1":
        raise Unusable(f"format {graph.get('format')!r} is not graph/1")
    found = Collection(runs=[folder], title=str(graph.get("experiment") or ""))
    try:
        for row in graph["rows"]:
            found.add_row(RowInfo(str(row["key"]), str(row.get("label") or row["key"]), row.get("expected")))
        for task in graph["tasks"]:
            found.add_task(str(task["key"]))
        jobs = [(folder / str(job["dir"]), dict(job)) for job in graph["jobs"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unusable(f"malformed: {error!r}") from error
    for place, job in jobs:
        _job(job, place, found, seen)
    found.superseded = _superseded(folder, {place for place, _ in jobs})
    return found


def _job(job: Mapping[str, Any], folder: Path, found: Collection, seen: set[Path]) -> None:
    if job.get("kind") in TRIAL_KINDS and job.get("role") != SEARCH_ROLE:
        _trial(job, folder, found, seen)
    elif job.get("kind") == "pretrain":
        _pretrain(job, folder, found)
    if (folder / SEARCH).is_file():
        _search(folder / SEARCH, found)


def _trial(job: Mapping[str, Any], folder: Path, found: Collection, seen: set[Path]) -> None:
    row, task = str(job.get("row")), str(job.get("task"))
    place = (row, task)
    found.asked[place] = found.asked.get(place, 0) + 1
    if _result(folder / RESULT, found, seen, row, task):
        return
    broken = next((skipped for skipped in found.skipped if skipped.path == folder / RESULT), None)
    name = str(job.get("name", folder.name))
    why = f"its result cannot be used: {broken.reason}" if broken else _state(folder)
    found.waiting.setdefault(place, []).append(f"{name}: {why}")


def _state(folder: Path) -> str:
    """A job's state and, where it failed, its last error line."""
    try:
        state = reading.load(folder / JOB)
    except Unusable:
        return "not started"
    line = " ".join(str(state.get("error") or "").split())
    return f"{state.get('status', 'unknown')}" + (f" ({line})" if line else "")


def _pretrain(job: Mapping[str, Any], folder: Path, found: Collection) -> None:
    """A pre-training run, also one that has only begun: its curves tell how it goes."""
    name = str(job.get("row") or job.get("name") or folder.name)
    label = found.rows[name].label if name in found.rows else name
    path = folder / RESULT
    if path.is_file():
        try:
            content = reading.load(path)
            reading.kind_of(content)
            found.pretraining.append(reading.pretraining_run(content, folder, label))
        except Unusable as error:
            found.skipped.append(Skipped(path, str(error)))
    elif (folder / METRICS).is_file():
        found.pretraining.append(Pretraining(folder, label, _state(folder), {}))


def _result(path: Path, found: Collection, seen: set[Path], row: str | None = None, task: str | None = None) -> bool:
    """Take in one result file; True when it gave a record (or was taken in before), False when there is none.

    Args:
        row: the experiment's row; None where there is no experiment, and the file's own words count.
        task: the experiment's task, likewise.
    """
    if not path.is_file():
        return False
    real = path.resolve()
    if real in seen:
        return True
    seen.add(real)
    try:
        _take(reading.load(path), path, found, row, task)
    except Unusable as error:
        found.skipped.append(Skipped(path, str(error)))
        return False
    return True


def _take(content: Mapping[str, Any], path: Path, found: Collection, row: str | None, task: str | None) -> None:
    kind = reading.kind_of(content)
    if kind == reading.PRETRAIN:
        found.pretraining.append(reading.pretraining_run(content, path.parent))
        return
    if content.get("role") == SEARCH_ROLE:
        return
    read = reading.transfer_trial if kind == reading.TRANSFER else reading.evaluation_trial
    trial = read(content, path, found.runs[0], row)
    if trial is None:
        return
    found.trials.append(replace(trial, task=task or trial.task))
    found.add_row(RowInfo(trial.row, trial.row, trial.row))
    found.add_task(task or trial.task)


def _search(path: Path, found: Collection) -> None:
    try:
        found.searches.append(reading.search(reading.load(path), path))
    except Unusable as error:
        found.skipped.append(Skipped(path, str(error)))


def _superseded(run: Path, current: set[Path]) -> int:
    """How many jobs' results lie in the run folder that its graph no longer names."""
    jobs = run / "jobs"
    if not jobs.is_dir():
        return 0
    return sum(1 for folder in jobs.iterdir() if folder not in current and (folder / RESULT).is_file())
