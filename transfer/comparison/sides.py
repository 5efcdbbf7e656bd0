"""The two words of the command line → detections: a trial's folder, a row of an experiment, or a foreign file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ssl_transfer.config import flatten, load_with_sources
from ssl_transfer.config_files import find_config
from ssl_transfer.errors import UserError, abbreviate, nearest
from ssl_transfer.formats.detections import DETECTIONS_FILE, REMEDY, Detections
from ssl_transfer.formats.results import AP_TOLERANCE, RESULT_FILE
from transfer.evaluation.foreign import read_foreign
from transfer.evaluation.matching import truth_digest
from transfer.report.collect import collect
from transfer.report.collection import DONE, Trial, read_first, transfer_command
from transfer.report.comparability import describe_differences, find_differences, split_repeated_seeds
from transfer.resampling.weighted_ap import average_precision
from transfer.tasks.classes import detection_root, toy_classes
from transfer.tasks.datasets import data_root
from transfer.tasks.task import Dataset, TaskSettings, read_split

CONFIG_FILE = "config.yaml"
SAME = {
    "images": "test images",
    "classes": "class lists",
    "metric": "metrics",
    "truth": "annotations",
    "toy": "toy marks",
}
"""What both sides must have in common, as a field of their detections → as messages call it."""


@dataclass(frozen=True)
class Side:
    """One of the two: its label, the user's word for it, its trials (a foreign file has none), and their detections."""

    label: str
    word: str
    trials: tuple[Trial, ...] = ()
    found: tuple[Detections, ...] = ()


def find_sides(
    words: tuple[str, str], task: str | None, data: Path | None
) -> tuple[tuple[Side, Side], Dataset | None, str]:
    """Read both sides, and the annotations of their test split.

    Args:
        words: each a trial's folder, `RUN:ROW`, or a file of detections in COCO's format of results.
        task: the task of a row that has several, or the config of the task that two foreign files are of.
        data: the data root; None: the one that the trial's config records, else $DETECTRON2_DATASETS.

    Returns:
        The sides; the test split, or None and the reason in one line.

    Raises:
        UserError: a side cannot be read, or the two were not measured on the same test split by the same metric.
    """
    a, b = (_find_side(word, task) for word in words)
    if a.label == b.label:
        a, b = replace(a, label=f"A: {a.label}"), replace(b, label=f"B: {b.label}")
    dataset, toy, why = None, False, ""
    try:
        dataset, toy = _read_dataset((*a.trials, *b.trials), task, data)
    except UserError as error:
        if data is not None or not (a.trials and b.trials):
            raise UserError(str(error).replace("TRANSFER.DATA_ROOT", "--data")) from error
        why = str(error)
    a, b = (replace(side, found=_detections(side, dataset, toy)) for side in (a, b))
    first = a.found[0]
    for found in (*a.found, *b.found):
        for key, what in SAME.items():
            if getattr(first, key) != getattr(found, key):
                values = " / ".join(_shown(getattr(one, key)) for one in (first, found))
                raise UserError(f"{a.word} and {b.word} do not compare, their {what} differ: {values}; name two alike")
    if dataset is not None and truth_digest(dataset) != first.truth:
        why = (
            f"the annotations in {dataset.split.folder} are not those that {first.test_split} had when it was measured"
        )
        if data is not None:
            raise UserError(f"--data {data}: {why}")
        dataset = None
    return (a, b), dataset, why


def _shown(value: object) -> str:
    return f"{len(value)} ({abbreviate(value)})" if isinstance(value, tuple) else str(value)[:12]


def _find_side(word: str, task: str | None) -> Side:
    path, (run, _, row) = Path(word), word.rpartition(":")
    if path.is_file():
        return Side(path.stem, word)
    if (path / RESULT_FILE).is_file():
        trials = collect([path]).trials
        return _as_side(word, trials[0].row if trials else "", trials, task)
    if path.is_dir() or not run or not Path(run).is_dir():
        rows = [f"{word}:{key}" for key in collect([path]).rows] if path.is_dir() else []
        what = "is no trial's folder" if path.exists() else "does not exist"
        raise UserError(
            f"{word} {what}; name a trial's folder, a file of detections, or a row: {abbreviate(rows) or 'RUN:ROW'}"
        )
    found = collect([Path(run)])
    if row not in found.rows:
        raise UserError(f"{run} has no row {row!r}; {nearest(row, found.rows)}")
    return _as_side(word, found.rows[row].label, [trial for trial in found.trials if trial.row == row], task)


def _as_side(word: str, label: str, trials: Sequence[Trial], task: str | None) -> Side:
    done = [trial for trial in trials if trial.status == DONE and "bbox" in trial.metrics and not trial.altered]
    tasks = sorted({trial.task for trial in done})
    if not tasks or (task or tasks[0]) not in tasks:
        on = f" on {task}; {nearest(str(task), tasks)}" if task else "; name another"
        raise UserError(f"{word} has no finished, unaltered trial{on}")
    if task is None and len(tasks) > 1:
        raise UserError(f"{word} has results on {', '.join(tasks)}; choose one: --task {tasks[0]}")
    counted, _ = split_repeated_seeds(trial for trial in done if trial.task == (task or tasks[0]))
    if differences := find_differences(counted):
        raise UserError(f"{word}: its trials differ in {describe_differences(differences)}; name one trial's folder")
    return Side(label, word, tuple(counted))


def _read_dataset(trials: Sequence[Trial], task: str | None, data: Path | None) -> tuple[Dataset, bool]:
    """The test split, and whether it is a toy, by the config of the first trial; without one by the config `task`."""
    if not trials and task is None:
        raise UserError("two foreign files do not say what they were measured on; name their task: --task coco")
    content, sources = load_with_sources(
        trials[0].folder / CONFIG_FILE if trials else find_config(str(task), "transfer")
    )
    root = None if data is None else detection_root(data)
    settings = TaskSettings.of(flatten(content), root, sources)
    toy = any(trial.toy for trial in trials) if trials else bool(toy_classes(root or data_root("")))
    return read_split(settings.splits[-1], settings.classes, settings.check_counts and not toy), toy


def _detections(side: Side, dataset: Dataset | None, toy: bool) -> tuple[Detections, ...]:
    if not side.trials and dataset is not None:
        return (read_foreign(Path(side.word), dataset, toy),)
    return tuple(map(_read, side.trials))


def _read(trial: Trial) -> Detections:
    if not isinstance(trial.detections, tuple):
        command = transfer_command(trial, searched=False, evaluate=True)
        raise UserError(f"{trial.folder} has no {DETECTIONS_FILE}; make it from the checkpoint: {command or REMEDY}")
    return read_first(trial.detections, partial(_read_file, trial))


def _read_file(trial: Trial, file: Path) -> Detections:
    found = Detections.read(file)
    ap = average_precision(found.matches["bbox"], len(found.classes), found.metric)["AP"]
    if abs(ap - trial.metrics["bbox"]["AP"]) > AP_TOLERANCE:
        raise UserError(f"{file} is of another trial: AP {ap:.4f}, not that of {trial.source}; {REMEDY}")
    return found
