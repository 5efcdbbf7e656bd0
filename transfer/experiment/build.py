"""From an experiment to its graph: pretrain → convert → fine-tune × trials → table, each with its fingerprint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from transfer.experiment import paths
from transfer.experiment.commands import Tools
from transfer.experiment.digests import Digests
from transfer.experiment.graph import Graph, Job
from transfer.experiment.load import Source
from transfer.experiment.settings import Settings, decisive, fingerprint, words
from transfer.experiment.spec import Experiment, Row, Task
from transfer.weights import zoo

TABLE_FORMATS = {"md": "table.md", "html": "table.html"}


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
    builder = _Builder(experiment, run_dir, tools or Tools(), digests or Digests(run_dir), Settings(overlay))
    jobs: dict[str, Job] = {}
    for key, row in experiment.rows.items():
        jobs.update((job.name, job) for job in builder.row(key, row))
    table = builder.table(list(jobs.values()))
    jobs[table.name] = table
    return Graph(
        experiment=experiment.name,
        source=source.text,
        sets=source.sets,
        rows=tuple({"key": k, "label": r.label or k, "expected": r.expected} for k, r in experiment.rows.items()),
        tasks=tuple({"key": k, "trials": t.trials} for k, t in experiment.tasks.items()),
        jobs=jobs,
    )


@dataclass(frozen=True)
class _Builder:
    experiment: Experiment
    run_dir: Path
    tools: Tools
    digests: Digests
    settings: Settings

    def row(self, key: str, row: Row) -> list[Job]:
        """The row's jobs, each after those it needs."""
        jobs: list[Job] = []
        if row.pretrain:
            jobs.append(self.pretrain(key, row))
        if not row.scratch:
            jobs.append(self.convert(key, row, jobs[0] if jobs else None))
        converted = jobs[-1] if jobs else None
        for task_key, task in self.experiment.tasks.items():
            jobs += [self.finetune(key, row, task_key, task, trial, converted) for trial in range(task.trials)]
        return jobs

    def pretrain(self, key: str, row: Row) -> Job:
        assert row.pretrain is not None
        config, images = paths.config_file(row.pretrain.config), self._root("images", f"row {key} pre-trains")
        overrides = row.pretrain.overrides
        settings = self.settings.resolved(config, "pretrain", overrides)
        print_ = fingerprint(
            kind="pretrain",
            settings=decisive(settings, "pretrain"),
            images=str(images),
        )
        name = f"pretrain.{key}"
        out = self._dir(name, print_)
        return Job(
            name=name,
            kind="pretrain",
            row=key,
            fingerprint=print_,
            needs=(),
            commands=(
                self.tools.pretrain(config, self.settings.overlay, self.run_dir / out, images, words(overrides)),
            ),
            outputs=(f"{out}/result.json", f"{out}/backbone.safetensors"),
            total=_number(settings.get("SOLVER.EPOCHS")),
            counter="epoch",
        )

    def convert(self, key: str, row: Row, producer: Job | None) -> Job:
        if producer is not None:
            checkpoint = self.run_dir / producer.dir / "backbone.safetensors"
            weights = producer.fingerprint
            layout, branch = row.source, row.branch
        else:
            entry = zoo.find(row.weights or "")
            checkpoint = paths.checkpoint(row.weights or "")
            # Not downloaded yet: `plan` names it, `submit` downloads it and then knows its digest.
            weights = self.digests.of(checkpoint) if entry is None or checkpoint.exists() else str(row.weights)
            layout = row.source or (entry.layout if entry else None)
            branch = row.branch or (entry.branch if entry else None)
        print_ = fingerprint(kind="convert", weights=weights, source=layout, branch=branch)
        name = f"convert.{key}"
        out = self._dir(name, print_)
        pickle = self.run_dir / out / f"{key}.pkl"
        return Job(
            name=name,
            kind="convert",
            row=key,
            fingerprint=print_,
            needs=(producer.name,) if producer else (),
            commands=(self.tools.convert(checkpoint, pickle, layout, branch, row.trust),),
            outputs=(f"{out}/{key}.pkl", f"{out}/{key}.manifest.json"),
        )

    def finetune(self, key: str, row: Row, task_key: str, task: Task, trial: int, converted: Job | None) -> Job:
        config, detection = paths.config_file(task.config), self._root("detection", f"task {task_key} fine-tunes")
        seed = self.experiment.seed(trial)
        overrides = {**task.overrides, **row.finetune}
        settings = self.settings.resolved(config, "transfer", overrides)
        print_ = fingerprint(
            kind="finetune",
            settings=decisive(settings, "transfer"),
            detection=str(detection),
            seed=seed,
            weights=converted.fingerprint if converted else "scratch",
        )
        name = f"finetune.{key}.{task_key}.s{seed}"
        out = self._dir(name, print_)
        weights = str(self.run_dir / converted.outputs[0]) if converted else "scratch"
        command = self.tools.transfer(
            config, self.settings.overlay, weights, seed, self.run_dir / out, detection, words(overrides)
        )
        return Job(
            name=name,
            kind="finetune",
            row=key,
            task=task_key,
            seed=seed,
            trial=trial + 1,
            fingerprint=print_,
            needs=(converted.name,) if converted else (),
            commands=(command,),
            outputs=(f"{out}/result.json",),
            total=_number(settings.get("SOLVER.MAX_ITER")),
        )

    def table(self, jobs: list[Job]) -> Job:
        """The table reads the trials' results and the pre-training curves."""
        inputs = [job for job in jobs if job.kind in ("pretrain", "finetune")]
        print_ = fingerprint(
            kind="table",
            rows=[(key, row.label, row.expected) for key, row in self.experiment.rows.items()],
            tasks=[(key, task.trials) for key, task in self.experiment.tasks.items()],
            inputs=[(job.name, job.fingerprint) for job in inputs],
        )
        return Job(
            name="table",
            kind="table",
            fingerprint=print_,
            needs=tuple(job.name for job in inputs),
            commands=tuple(
                self.tools.table(self.run_dir, form, self.run_dir / file) for form, file in TABLE_FORMATS.items()
            ),
            outputs=tuple(TABLE_FORMATS.values()),
        )

    def _root(self, which: str, who: str) -> Path:
        given = getattr(self.experiment.data, which)
        if not given:
            raise UserError(f"data.{which} is not given but {who}; add it to the file or pass --set data.{which}=DIR")
        return paths.absolute(given)

    @staticmethod
    def _dir(name: str, print_: str) -> str:
        return f"jobs/{name}-{print_[:8]}"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 else None
