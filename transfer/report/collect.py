"""Folders → records. An experiment's `graph.json` says what is current; other folders are searched for results.

Several run folders become one collection. Rows of one name are one row only if they stand for the same weights.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_transfer.console import as_typed
from ssl_transfer.environment import ROOT
from ssl_transfer.errors import UserError
from ssl_transfer.formats.graph import GRAPH_FILE, GraphFile, GraphJob
from ssl_transfer.formats.job import STATE_FILE, AttemptRecord, JobState
from ssl_transfer.formats.results import LR_SEARCH_FILE, RESULT_FILE, LrSearchRecord, PretrainResult, TransferResult
from transfer.report.collection import Collection, PretrainingRun, RecordedSearch, RowInfo, Skipped
from transfer.report.reading import detected_trial, evaluation_trial, imported_trial, read_result, transfer_trial

if TYPE_CHECKING:
    from ssl_transfer.formats.detections import Detections

METRICS_FILE = "metrics.json"
SEARCH_ROLE = "lr_search"
TRIAL_KINDS = ("finetune", "evaluate")


def collect(folders: Iterable[Path]) -> Collection:
    """Read everything below the named folders; experiments may be anywhere below them.

    A malformed or foreign file is recorded in `skipped`. A result file found twice (folders that overlap) counts once.

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
    found = Collection(runs=runs)
    for part in parts:
        _extend(found, _rename_conflicts(part, found))
    return found


def add_imported(found: Collection, row: str, task: str, file: Path, detections: Detections | None = None) -> None:
    """Add a trial that was run elsewhere; a file that was added before counts once.

    Args:
        found: changed.
        row, task: keys of the table.
        file: Detectron2's metrics or log, or detections.
        detections: those of the file, matched with the objects.

    Raises:
        UserError: the file is missing or holds no evaluation.
    """
    trial = imported_trial(file, row, task) if detections is None else detected_trial(detections, file, row, task)
    if all(known.source.resolve() != file.resolve() for known in found.trials):
        found.add_trial(trial)


def _walk(folder: Path, seen: set[Path]) -> Iterator[Collection]:
    """One collection for each experiment below `folder`, and one for all that is outside of experiments."""
    loose = Collection(runs=[folder])
    for here, below, files in os.walk(folder):
        below.sort()
        path = Path(here)
        if GRAPH_FILE in files:
            try:
                yield _read_experiment(path, seen)
            except UserError as error:
                _skip(loose, path / GRAPH_FILE, error)
            else:
                below.clear()
                continue
        if RESULT_FILE in files:
            _read_result(path / RESULT_FILE, loose, seen)
        if LR_SEARCH_FILE in files:
            _read_search(path / LR_SEARCH_FILE, loose)
    yield split_by_weights(loose)


def _skip(found: Collection, path: Path, error: UserError) -> None:
    found.skipped.append(Skipped(path, str(error).removeprefix(str(path)).lstrip(":, ")))


def _read_experiment(folder: Path, seen: set[Path]) -> Collection:
    """Read an experiment's folder by its graph.

    Raises:
        UserError: the graph is malformed; the folder is searched for results instead.
    """
    graph = GraphFile.read(folder / GRAPH_FILE)
    found = Collection(runs=[folder], title=graph.experiment)
    for row in graph.rows:
        found.add_row(RowInfo(row.key, row.label or row.key, row.expected))
    for task in graph.tasks:
        found.add_task(task.key)
    for job in graph.jobs:
        if job.kind in TRIAL_KINDS and job.role != SEARCH_ROLE:
            _read_trial(job, folder / job.dir, found, seen)
        elif job.kind == "pretrain":
            _read_pretraining(job, folder / job.dir, found, seen)
        if (folder / job.dir / LR_SEARCH_FILE).is_file():
            _read_search(folder / job.dir / LR_SEARCH_FILE, found)
    source = ROOT / "configs" / "experiments" / f"{graph.experiment}.yaml"
    if source.is_file() and source.read_text(encoding="utf-8") == graph.source:
        words = ["python", "tools/launch.py", "submit", str(source.relative_to(ROOT))]
        words += [word for pair in graph.sets for word in ("--set", pair)]
        found.commands.append(as_typed(shlex.join(words)))
    found.superseded = _count_superseded(folder, {folder / job.dir for job in graph.jobs})
    return found


def _read_trial(job: GraphJob, folder: Path, found: Collection, seen: set[Path]) -> None:
    key = (str(job.row), str(job.task))
    found.requested[key] = found.requested.get(key, 0) + 1
    path = folder / RESULT_FILE
    if _read_result(path, found, seen, *key):
        return
    skipped = next((skipped for skipped in found.skipped if skipped.path == path), None)
    why = f"its result cannot be used: {skipped.reason}" if skipped else _describe_state(folder)
    found.waiting.setdefault(key, []).append(f"{job.name}: {why}")


def _describe_state(folder: Path) -> str:
    """A job's state and, if it failed, its last error line."""
    state = JobState.read_or_none(folder / STATE_FILE)
    if state is None:
        return f"its {STATE_FILE} is damaged" if (folder / STATE_FILE).exists() else "not started"
    line = " ".join((state.error or "").split())
    return state.status + (f" ({line})" if line else "")


def _attempts(folder: Path) -> tuple[AttemptRecord, ...]:
    """Every attempt at the job of this folder; empty outside of experiments."""
    with contextlib.suppress(UserError):
        if (folder / STATE_FILE).is_file():
            return tuple(JobState.read(folder / STATE_FILE).all_attempts())
    return ()


def _read_pretraining(job: GraphJob, folder: Path, found: Collection, seen: set[Path]) -> None:
    """Add a pre-training run; one without a result is added for its curves."""
    name = job.row or job.name
    if (folder / RESULT_FILE).is_file():
        _read_result(folder / RESULT_FILE, found, seen, name)
    elif (folder / METRICS_FILE).is_file():
        label = found.rows[name].label if name in found.rows else name
        found.pretraining.append(PretrainingRun(folder, label, _describe_state(folder)))


def _read_result(
    path: Path, found: Collection, seen: set[Path], row: str | None = None, task: str | None = None
) -> bool:
    """Add one result file; True if it gave a record (or was added before), False if there is none.

    Args:
        row, task: the experiment's; None without an experiment, when the file's own names count.
    """
    if not path.is_file():
        return False
    real = path.resolve()
    if real in seen:
        return True
    seen.add(real)
    try:
        _add_result(path, found, row, task)
    except UserError as error:
        _skip(found, path, error)
        return False
    return True


def _add_result(path: Path, found: Collection, row: str | None, task: str | None) -> None:
    result, altered = read_result(path)
    if isinstance(result, PretrainResult):
        if altered:
            raise UserError(f"{path}: altered: {altered}")
        name = row or result.recipe or result.method
        label = found.rows[name].label if name in found.rows else name
        found.pretraining.append(PretrainingRun(path.parent, label, result.status, result, _attempts(path.parent)))
        return
    if isinstance(result, TransferResult):
        trial = None if result.role == SEARCH_ROLE else transfer_trial(result, path, row)
    else:
        trial = evaluation_trial(result, path, row)
    if trial is not None:
        attempts = _attempts(path.parent)
        found.add_trial(replace(trial, task=task or trial.task, attempts=attempts, altered=altered))


def _read_search(path: Path, found: Collection) -> None:
    try:
        found.searches.append(RecordedSearch(path, LrSearchRecord.read(path)))
    except UserError as error:
        _skip(found, path, error)


def _count_superseded(run: Path, current: set[Path]) -> int:
    """The number of job folders with a result that the graph no longer names."""
    jobs = run / "jobs"
    if not jobs.is_dir():
        return 0
    return sum(1 for folder in jobs.iterdir() if folder not in current and (folder / RESULT_FILE).is_file())


def split_by_weights(found: Collection) -> Collection:
    """Results outside of experiments, with a row for each weights file.

    Two files of one name become `name@sha256`, first eight digits: only an experiment says that several files are one
    row.
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


def _weights(found: Collection) -> dict[str, set[str]]:
    """Row to the SHA-256 of its weights files."""
    made: dict[str, set[str]] = {}
    for trial in found.trials:
        if not trial.altered:
            made.setdefault(trial.row, set()).add(str(trial.weights.get("sha256")))
    return made


def _free_key(key: str, used: Mapping[str, RowInfo]) -> str:
    number, name = 2, key
    while name in used:
        name, number = f"{key}-{number}", number + 1
    return name


def _rename_conflicts(part: Collection, merged: Collection) -> Collection:
    """Rename the rows of `part` whose trials were made from other weights than those of the same name in `merged`.

    The new name has the run folder's: `simsiam` and `simsiam@second`.
    """
    here, there = _weights(merged), _weights(part)
    folder = Path(part.runs[0]).resolve().name if part.runs else "other"
    names = {
        key: _free_key(f"{key}@{folder}", merged.rows)
        for key in part.rows
        if here.get(key) and there.get(key) and here[key] != there[key]
    }
    if not names:
        return part
    rows = {}
    for key, info in part.rows.items():
        new = names.get(key, key)
        rows[new] = info if new == key else RowInfo(new, f"{info.label} ({folder})", info.expected)
    searches = []
    for search in part.searches:
        row = names.get(search.record.row, search.record.row)
        searches.append(replace(search, record=search.record.model_copy(update={"row": row})))
    return replace(
        part,
        rows=rows,
        trials=[replace(trial, row=names.get(trial.row, trial.row)) for trial in part.trials],
        requested={(names.get(row, row), task): count for (row, task), count in part.requested.items()},
        waiting={(names.get(row, row), task): lines for (row, task), lines in part.waiting.items()},
        searches=searches,
    )


def _extend(merged: Collection, part: Collection) -> None:
    for info in part.rows.values():
        merged.add_row(info)
    for task in part.tasks:
        merged.add_task(task)
    for key, count in part.requested.items():
        merged.requested[key] = max(count, merged.requested.get(key, 0))
    for key, lines in part.waiting.items():
        merged.waiting.setdefault(key, []).extend(lines)
    merged.trials += part.trials
    merged.pretraining += part.pretraining
    merged.searches += part.searches
    merged.skipped += part.skipped
    merged.commands += part.commands
    merged.superseded += part.superseded
    merged.title = merged.title or part.title
