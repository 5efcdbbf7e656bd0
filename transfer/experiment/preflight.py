"""What can be known to be wrong before any job starts: one line, nothing written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError
from common.files import read_json
from transfer.experiment import paths
from transfer.experiment.build import run_dir_of
from transfer.experiment.commands import Tools
from transfer.experiment.graph import FILE
from transfer.experiment.load import Source
from transfer.experiment.spec import Experiment
from transfer.weights import zoo


def check_files(experiment: Experiment, source: Source, tools: Tools) -> None:
    """Everything a plan reads is there: config files, the overlay, checkpoints, the tools.

    Raises:
        UserError: it is not so; names the experiment file and its key.
    """
    for key, file in _files(experiment):
        if not file.is_file():
            raise UserError(f"{source.path}: {key}: {file} is not a file; write a path from the current folder")
    for key, root in _roots(experiment):
        if root is None:
            raise UserError(f"{source.path}: {key} is not given; add it to the file or pass --set {key}=DIR")
    names = ["pretrain", "convert", "transfer", "table"]
    names += ["evaluate"] if experiment.evaluations else []
    names += ["lr_search"] if experiment.lr_search else []
    for name in names:
        if not (tools.folder / f"{name}.py").is_file():
            raise UserError(f"{tools.folder / name}.py is missing; this checkout is not complete")


def problems(experiment: Experiment, source: Source) -> Iterator[str]:
    """What a job would stumble over, one line each: data roots, the run folder."""
    for key, root in _roots(experiment):
        if root is not None and not root.is_dir():
            yield f"{source.path}: {key}: {root} is not a folder; make it, or give another with --set {key}=DIR"
    run_dir = run_dir_of(experiment)
    existing = run_dir
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield f"{source.path}: run_dir: {run_dir} cannot be written; give another with --set run_dir=DIR"
    elif (run_dir / FILE).exists():
        owner = read_json(run_dir / FILE).get("experiment")
        if owner != experiment.name:
            of = f"belongs to experiment {owner!r}"
            yield f"{source.path}: run_dir: {run_dir} {of}; give another with --set run_dir=DIR"


def downloads(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """The zoo's checkpoints that rows name and that are not here, as (row's key, `zoo:NAME`)."""
    for key, row in experiment.rows.items():
        entry = zoo.find_entry(row.weights or "")
        if entry is not None and not entry.file.exists():
            yield key, str(row.weights)


def _files(experiment: Experiment) -> Iterator[tuple[str, Path]]:
    if experiment.overlay:
        yield "overlay", paths.config_file(experiment.overlay)
    for key, row in experiment.rows.items():
        if row.pretrain:
            yield f"rows.{key}.pretrain.config", paths.config_file(row.pretrain.config)
        if row.weights and zoo.find_entry(row.weights) is None:
            yield f"rows.{key}.weights", paths.absolute(row.weights)
    for key, task in experiment.tasks.items():
        yield f"tasks.{key}.config", paths.config_file(task.config)
    for key, evaluation in experiment.evaluations.items():
        if evaluation.config:
            yield f"evaluations.{key}.config", paths.config_file(evaluation.config)


def _roots(experiment: Experiment) -> Iterator[tuple[str, Path | None]]:
    data = experiment.data
    if experiment.evaluations or any(row.pretrain for row in experiment.rows.values()):
        yield "data.images", paths.absolute(data.images) if data.images else None
    if experiment.tasks:
        yield "data.detection", paths.absolute(data.detection) if data.detection else None
