"""What is read from disk: a record for each trial, pre-training run, lr search and file that could not be used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from common.formats.run_only import may_differ_in_average

DONE, DIVERGED = "done", "diverged"


@dataclass(frozen=True)
class Trial:
    """One fine-tuning run (or one linear evaluation) with its metrics and where they came from.

    Attributes:
        source: the file the metrics were read from.
        run: the folder the user named, under which `source` was found.
        row: key of the table's row: the experiment's row, or the weights' name where there is no experiment.
        task: the task's key, such as `voc07`; a linear evaluation's is `linear_<epochs>ep`.
        status: `done` or `diverged`.
        seed: None where it is not known (imported results).
        metrics: branch (`bbox`, `segm`, `linear`) to metric (`AP50`, `top1`, …) to a value in per cent.
        per_class: branch to class name to AP in per cent; None where the class has no ground truth.
        toy: made with an overlay that shrinks the run; stands beside no published number.
        imported: not made by this project; its settings are unknown.
        reasons: why it does not compare with the published protocol; empty when it does.
        divergence: iteration, lr and what became NaN, for a diverged trial.
        settings, weights, config, guards, environment, timing: blocks of the result file, as they are.
    """

    source: Path
    run: Path
    row: str
    task: str
    status: str
    seed: int | None
    metrics: Mapping[str, Mapping[str, float]]
    per_class: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    toy: bool = False
    imported: bool = False
    reasons: tuple[str, ...] = ()
    divergence: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    guards: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    timing: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder with the trial's log, metrics and pictures."""
        return self.source.parent

    @property
    def origin(self) -> Mapping[str, Any]:
        """How the weights were pre-trained (method, recipe, epochs, …); empty when unknown."""
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
    def gpu_hours(self) -> float | None:
        """Processes times wall-clock hours of training and evaluation; None when unknown or made on a CPU."""
        seconds = [self.timing.get(key) for key in ("train_seconds", "eval_seconds")]
        devices = self.environment.get("devices") or ["cpu"]
        known = [float(s) for s in seconds if isinstance(s, (int, float))]
        if not known or list(devices) == ["cpu"]:
            return None
        return sum(known) / 3600 * int(self.settings.get("num_processes") or 1)


@dataclass(frozen=True)
class Pretraining:
    """A pre-training run, finished or not.

    Attributes:
        folder: where `metrics.json` lies.
        name: what to call it in a legend.
        status: `done`, or the job's state (`running`, `failed`, …).
        result: the content of its result.json; empty while it runs.
    """

    folder: Path
    name: str
    status: str
    result: Mapping[str, Any]

    @property
    def toy(self) -> bool:
        """Whether its result says it is a toy."""
        return bool(self.result.get("toy"))


@dataclass(frozen=True)
class Search:
    """The learning rates tried for one (row, task), apart from the reported trials, and the one chosen."""

    source: Path
    row: str
    task: str
    split: str
    metric: str
    points: tuple[Mapping[str, Any], ...]
    chosen: float | None


@dataclass(frozen=True)
class Skipped:
    """A file that was found and could not be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class RowInfo:
    """A row the results ask for.

    Attributes:
        key: what trials name.
        label: what is printed.
        expected: key of the published row beside it; None for none.
    """

    key: str
    label: str
    expected: str | None = None


@dataclass
class Collection:
    """Everything found below the folders the user named.

    Attributes:
        rows: in the order they are to be printed.
        asked: (row, task) to the number of trials the experiment asks for.
        waiting: (row, task) to one line for each trial that has no result yet, saying why.
        superseded: how many result files of earlier fingerprints lie beside the current ones.
    """

    rows: dict[str, RowInfo] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    asked: dict[tuple[str, str], int] = field(default_factory=dict)
    waiting: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    pretraining: list[Pretraining] = field(default_factory=list)
    searches: list[Search] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)
    title: str = ""
    superseded: int = 0

    def add_row(self, row: RowInfo) -> None:
        """Add a row unless its key is there already."""
        self.rows.setdefault(row.key, row)

    def add_task(self, task: str) -> None:
        """Add a task unless it is there already."""
        if task not in self.tasks:
            self.tasks.append(task)


def as_text(value: Any) -> str:
    """A setting's value as the text it is compared and printed by: 16 and 16.0 are one, a list of names is a sum."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, (int, float)):
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return " + ".join(value)
    return json.dumps(value, sort_keys=True, default=str)
