"""From an experiment to its graph: pretrain → convert → evaluate; search of the lr → fine-tune × trials → table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transfer.experiment import paths
from transfer.experiment.commands import Tools
from transfer.experiment.digests import Digests
from transfer.experiment.graph import Graph, Job
from transfer.experiment.load import Source
from transfer.experiment.settings import Settings
from transfer.experiment.spec import Experiment, Row
from transfer.experiment.stages import Stages


def run_dir_of(experiment: Experiment) -> Path:
    """Where the experiment writes: its `run_dir`, else `runs/<name>` in the current folder."""
    return paths.absolute(experiment.run_dir or f"runs/{experiment.name}")


def build(experiment: Experiment, source: Source, tools: Tools | None = None, digests: Digests | None = None) -> Graph:
    """The experiment's graph; reads config files and hashes weights, writes nothing.

    Args:
        experiment: what to run.
        source: where it came from; kept in the graph.
        tools: who runs it; the checkout's tools unless told.
        digests: remembered digests of weights; those of the run folder unless told.

    Raises:
        UserError: a config file, the overlay or a checkpoint is missing, or a data root that is needed is not given.
    """
    run_dir = run_dir_of(experiment)
    overlay = paths.config_file(experiment.overlay) if experiment.overlay else None
    stages = Stages(experiment, run_dir, tools or Tools(), digests or Digests(run_dir), Settings(overlay))
    jobs: dict[str, Job] = {}
    for key, row in experiment.rows.items():
        jobs.update((job.name, job) for job in _row(key, row, stages))
    table = stages.table(list(jobs.values()))
    jobs[table.name] = table
    return Graph(
        experiment=experiment.name,
        source=source.text,
        sets=source.sets,
        rows=_table_rows(experiment),
        tasks=tuple({"key": k, "trials": t.trials} for k, t in experiment.tasks.items()),
        jobs=jobs,
    )


def _row(key: str, row: Row, stages: Stages) -> list[Job]:
    """The row's jobs, each after those it needs."""
    experiment = stages.experiment
    jobs: list[Job] = []
    backbone: Job | None = None  # leaves a backbone file
    converted: Job | None = None  # leaves Detectron2's form
    if row.pretrain:
        backbone = stages.pretrain(key, row)
        jobs.append(backbone)
    if (experiment.tasks and not row.scratch) or (experiment.evaluations and row.weights):
        converted = stages.convert(key, row, backbone)
        jobs.append(converted)
    backbone = backbone or converted
    if backbone is not None:
        jobs += [stages.evaluate(key, row, name, one, backbone) for name, one in experiment.evaluations.items()]
    for task_key, task in experiment.tasks.items():
        choose: Job | None = None
        if experiment.lr_search and experiment.lr_search.covers(key, task_key):
            jobs += stages.search(key, row, task_key, task, converted)
            choose = jobs[-1]
        jobs += [stages.finetune(key, row, task_key, task, trial, converted, choose) for trial in range(task.trials)]
    return jobs


def _table_rows(experiment: Experiment) -> tuple[dict[str, Any], ...]:
    """The table's rows; what is part of another row is none of its own."""
    found: dict[str, dict[str, Any]] = {}
    for key, row in experiment.rows.items():
        whole = row.part_of or key
        if whole not in found or whole == key:
            found[whole] = {"key": whole, "label": row.label or whole, "expected": row.expected}
    return tuple(found.values())
