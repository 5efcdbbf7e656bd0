"""What the report reads from disk: trials, pre-training runs, learning-rate searches, and files it could not use."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ssl_transfer.console import as_typed
from ssl_transfer.errors import UserError
from ssl_transfer.formats.run_only import may_differ_in_average

if TYPE_CHECKING:
    from ssl_transfer.formats.detections import Detections
    from ssl_transfer.formats.job import AttemptRecord
    from ssl_transfer.formats.results import LrSearchRecord, PretrainResult

DONE, DIVERGED = "done", "diverged"
Content = TypeVar("Content")


@dataclass(frozen=True)
class Trial:
    """One fine-tuning run (or one linear evaluation) with its metrics and where they came from.

    Attributes:
        source: the file the metrics were read from.
        row: key of the table's row: the experiment's row, or the weights' name where there is no experiment.
        task: the task's key, such as `voc07`; a linear evaluation's is `linear_<epochs>ep`.
        status: `done` or `diverged`.
        seed: None if unknown (imported results).
        metrics: branch (`bbox`, `segm`, `linear`) to metric (`AP50`, `top1`, …) to a value in per cent.
        per_class: branch to class name to AP in per cent; None if the class has no ground truth.
        toy: made with an overlay that shrinks the run; never compared with published numbers.
        imported: not made by this project; its settings are unknown.
        reasons: why it does not compare with the published protocol; empty if it does.
        altered: how the file was altered after it was written; such a trial is not averaged. Empty if it was not.
        divergence: iteration, lr and what became NaN, for a diverged trial.
        settings, weights, config, guards, environment, timing: sections of the result file.
        attempts: every attempt at its job; empty outside of experiments.
        detections: its detections, or the files with them, of which the first usable one counts; None if it kept none.
    """

    source: Path
    row: str
    task: str
    status: str
    seed: int | None
    metrics: Mapping[str, Mapping[str, float]]
    per_class: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    toy: bool = False
    imported: bool = False
    reasons: tuple[str, ...] = ()
    altered: str = ""
    divergence: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    guards: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    timing: Mapping[str, Any] = field(default_factory=dict)
    attempts: tuple[AttemptRecord, ...] = ()
    detections: Detections | tuple[Path, ...] | None = None

    @property
    def folder(self) -> Path:
        """The folder with the trial's log, metrics and pictures."""
        return self.source.parent

    @property
    def origin(self) -> Mapping[str, Any]:
        """How the weights were pre-trained (method, recipe, epochs, …); empty if unknown."""
        manifest = self.weights.get("manifest") or {}
        return self.weights.get("origin") or manifest.get("origin") or {}

    @cached_property
    def facts(self) -> dict[str, str]:
        """What trials must have in common to be averaged: name to text."""
        facts = {name: as_text(value) for name, value in self.settings.items() if not may_differ_in_average(name)}
        facts["weights sha256"] = str(self.weights.get("sha256") or "none")
        facts["toy"] = as_text(self.toy)
        facts["imported"] = as_text(self.imported)
        return facts

    @property
    def _spent(self) -> tuple[float | None, float | None]:
        seconds = [self.timing.get(key) for key in ("train_seconds", "eval_seconds")]
        known = [float(s) for s in seconds if isinstance(s, (int, float))]
        return spent_hours(self.attempts, sum(known) if known else None, self.settings.get("num_processes") or 1)

    @property
    def hours(self) -> float | None:
        """Wall-clock hours of training and evaluation, of all attempts; None if unknown."""
        return self._spent[0]

    @property
    def gpu_hours(self) -> float | None:
        """Wall-clock hours times processes, of all attempts; None if unknown or made on a CPU."""
        return None if list(self.environment.get("devices") or ["cpu"]) == ["cpu"] else self._spent[1]

    def provenance(self) -> dict[str, Any]:
        """Where the trial's figures came from, as plain data."""
        manifest = self.weights.get("manifest") or {}
        origin = self.origin
        return {
            "result": str(self.source),
            "folder": str(self.folder),
            "status": self.status,
            "imported": self.imported,
            "toy": self.toy,
            "seed": self.seed,
            "lr": self.settings.get("lr"),
            "metrics": {branch: dict(values) for branch, values in self.metrics.items()},
            "per_class": {branch: dict(values) for branch, values in self.per_class.items()},
            "not_comparable": list(self.reasons),
            "divergence": self.divergence,
            "weights": {
                **{key: self.weights.get(key) for key in ("name", "path", "sha256")},
                **{key: manifest.get(key) for key in ("source", "preprocessing")},
            },
            "pretraining": {key: origin[key] for key in ("method", "recipe", "epochs", "commit") if key in origin}
            or None,
            "settings": dict(self.settings),
            "config": dict(self.config),
            "guards": dict(self.guards),
            "commit": self.environment.get("commit"),
            "environment": dict(self.environment),
            "timing": dict(self.timing),
            "gpu_hours": self.gpu_hours,
            "attempts": len(self.attempts) if len(self.attempts) > 1 else None,
        }


def spent_hours(
    attempts: Sequence[AttemptRecord], seconds: float | None, processes: int | None
) -> tuple[float | None, float | None]:
    """Wall-clock hours, and those times processes: of all attempts if there were several, else as the result says.

    Args:
        attempts: by the job's record; their GPUs count if they are known.
        seconds, processes: by the result, which knows only of the last attempt.
    """
    if len(attempts) > 1:
        parts = [(one.seconds / 3600, one.gpus or processes or 1) for one in attempts]
        return sum(hours for hours, _ in parts), sum(hours * count for hours, count in parts)
    hours = None if seconds is None else seconds / 3600
    return hours, None if hours is None or processes is None else hours * processes


def read_first(files: Sequence[Path], read: Callable[[Path], Content]) -> Content:
    """What `read` makes of the first file that it can use.

    Raises:
        UserError: that of the first file, where none can be used.
    """
    try:
        return read(files[0])
    except UserError:
        for file in files[1:]:
            with contextlib.suppress(UserError):
                return read(file)
        raise


def transfer_command(trial: Trial, searched: bool, evaluate: bool = False) -> str:
    """The command line that runs a trial again, in a folder of its own; empty for one that this project did not run.

    Args:
        trial: the trial.
        searched: its learning rate is a search's, which its config does not hold.
        evaluate: only evaluate the trial again, in its own folder.
    """
    file, settings, overrides = trial.config.get("file"), trial.settings, [*(trial.config.get("overrides") or [])]
    if not file or trial.seed is None:
        return ""
    options = {
        "--config-file": file,
        "--overlay": trial.config.get("overlay"),
        "--weights": trial.weights.get("path") or "scratch",
        "--seed": trial.seed,
        "--output": trial.folder if evaluate else f"runs/again/{trial.row}.{trial.task}.s{trial.seed}",
        "--num-gpus": settings.get("num_processes") if settings.get("num_processes") != 1 else None,
        "--reference-gpus": settings.get("reference_gpus"),
    }
    if searched and "SOLVER.BASE_LR" not in overrides:
        overrides += ["SOLVER.BASE_LR", settings.get("lr")]
    words = [word for option, value in options.items() if value is not None for word in (option, value)]
    words += ["--eval-only"] if evaluate else []
    return as_typed(shlex.join(map(str, ["python", "tools/transfer.py", *words, *overrides])))


@dataclass(frozen=True)
class PretrainingRun:
    """A pre-training run, finished or not.

    Attributes:
        folder: where `metrics.json` is.
        name: its name in legends.
        status: `done`, or the job's state (`running`, `failed`, …).
        result: its result.json; None while it runs.
        attempts: every attempt at its job; empty outside of experiments.
    """

    folder: Path
    name: str
    status: str
    result: PretrainResult | None = None
    attempts: tuple[AttemptRecord, ...] = ()


@dataclass(frozen=True)
class RecordedSearch:
    """A learning-rate search, separate from the reported trials, and the file that records it."""

    source: Path
    record: LrSearchRecord

    def provenance(self) -> dict[str, Any]:
        """How the learning rate was chosen, as plain data."""
        tried = {str(p.lr): p.status if p.value is None else p.value for p in self.record.points}
        found = {"record": str(self.source), "metric": self.record.metric, "split": self.record.split}
        return {**found, "tried": tried, "chosen": self.record.chosen}


@dataclass(frozen=True)
class Skipped:
    """A file that could not be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class RowInfo:
    """A row of the table.

    Attributes:
        key: the name that trials refer to.
        label: the printed name.
        expected: key of the published row to compare with; None for none.
    """

    key: str
    label: str
    expected: str | None = None


@dataclass
class Collection:
    """Everything found below the folders that the user named.

    Attributes:
        rows: in the order in which they are printed.
        requested: (row, task) to the number of trials that the experiment requests.
        waiting: (row, task) to one line for each trial without a result, with the reason.
        commands: command lines that submit the experiments, where their files are among the project's configs.
        superseded: number of result files of earlier fingerprints beside the current ones.
    """

    rows: dict[str, RowInfo] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    requested: dict[tuple[str, str], int] = field(default_factory=dict)
    waiting: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    pretraining: list[PretrainingRun] = field(default_factory=list)
    searches: list[RecordedSearch] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)
    title: str = ""
    commands: list[str] = field(default_factory=list)
    superseded: int = 0

    def add_row(self, row: RowInfo) -> None:
        """Add a row unless its key is present."""
        self.rows.setdefault(row.key, row)

    def add_task(self, task: str) -> None:
        """Add a task unless it is present."""
        if task not in self.tasks:
            self.tasks.append(task)

    def add_trial(self, trial: Trial) -> None:
        """Add a trial with its task, and a row where no experiment has declared one."""
        self.trials.append(trial)
        self.add_row(RowInfo(trial.row, trial.row, trial.row))
        self.add_task(trial.task)


def as_text(value: Any) -> str:
    """A setting as the text it is compared and printed by: 16 and 16.0 are equal, a list of names is joined by +."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, (int, float)):
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return " + ".join(value)
    return json.dumps(value, sort_keys=True, default=str)
