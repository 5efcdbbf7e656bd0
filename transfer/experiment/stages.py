"""The jobs of an experiment, one method a kind: what each runs, what it needs, what it leaves, its fingerprint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.errors import UserError
from transfer.experiment import paths
from transfer.experiment.commands import Tools
from transfer.experiment.digests import Digests
from transfer.experiment.graph import Job, Kind
from transfer.experiment.settings import Settings, decisive, fingerprint, words
from transfer.experiment.spec import Evaluation, Experiment, Row, Task
from transfer.weights import zoo

EVALUATIONS = {
    "knn": "configs/evaluation/knn_imagenet_k200_t0.2.yaml",
    "linear": "configs/evaluation/linear_imagenet_lars_b4096_90ep.yaml",
}
"""The recipe of each kind, where the experiment names none: what tools/evaluate.py takes, too."""
LR = "SOLVER.BASE_LR"
TABLE_FORMATS = {"md": "table.md", "html": "table.html"}


@dataclass(frozen=True)
class Stages:
    """Makes jobs.

    Attributes:
        experiment: the settings.
        run_dir: where the jobs' folders lie.
        tools: who runs them.
        digests: of weights files.
        settings: reads config files.
    """

    experiment: Experiment
    run_dir: Path
    tools: Tools
    digests: Digests
    settings: Settings

    def pretrain(self, key: str, row: Row) -> Job:
        """The row's pre-training."""
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
        out = _dir(name, print_)
        return Job(
            name=name,
            kind="pretrain",
            row=row.part_of or key,
            fingerprint=print_,
            needs=(),
            commands=(
                self.tools.pretrain(config, self.settings.overlay, self.run_dir / out, images, words(overrides)),
            ),
            outputs=(f"{out}/result.json", f"{out}/backbone.safetensors"),
            total=_number(settings.get("SOLVER.EPOCHS")),
            counter="epoch",
            data=str(images),
            recipe=self._recipe(config.stem, "SOLVER.BATCH_SIZE" in overrides),
        )

    def convert(self, key: str, row: Row, producer: Job | None) -> Job:
        """The row's conversion: of its own pre-training's backbone, or of a given checkpoint."""
        if producer is not None:
            checkpoint = self.run_dir / producer.dir / "backbone.safetensors"
            weights = producer.fingerprint
            layout, branch = row.source, row.branch
        else:
            entry = zoo.find_entry(row.weights or "")
            checkpoint = paths.checkpoint(row.weights or "")
            # Not downloaded yet: `plan` names it, `submit` downloads it and then knows its digest.
            weights = self.digests.of(checkpoint) if entry is None or checkpoint.exists() else str(row.weights)
            layout = row.source or (entry.layout if entry else None)
            branch = row.branch or (entry.branch if entry else None)
        print_ = fingerprint(kind="convert", weights=weights, source=layout, branch=branch)
        name = f"convert.{key}"
        out = _dir(name, print_)
        commands, outputs = [], []
        if self.experiment.tasks:
            pickle = self.run_dir / out / f"{key}.pkl"
            commands.append(self.tools.convert(checkpoint, pickle, layout, branch, row.trust))
            outputs += [f"{out}/{key}.pkl", f"{out}/{key}.manifest.json"]
        if self.experiment.evaluations and producer is None:
            backbone = self.run_dir / out / f"{key}.safetensors"
            commands.append(self.tools.convert(checkpoint, backbone, layout, branch, row.trust, to="safetensors"))
            outputs.append(f"{out}/{key}.safetensors")
        return Job(
            name=name,
            kind="convert",
            row=row.part_of or key,
            fingerprint=print_,
            needs=(producer.name,) if producer else (),
            commands=tuple(commands),
            outputs=tuple(outputs),
        )

    def evaluate(self, key: str, row: Row, name: str, evaluation: Evaluation, producer: Job) -> Job:
        """An evaluation of a row's backbone.

        Args:
            key, row: the row.
            name, evaluation: what is done.
            producer: the row's pre-training or conversion, whose last output is a backbone file.
        """
        images = self._root("images", f"evaluation {name} measures")
        config = paths.config_file(evaluation.config or EVALUATIONS[evaluation.kind])
        overrides = evaluation.overrides
        settings = self.settings.resolved(config, "evaluate", overrides)
        print_ = fingerprint(
            kind="evaluate",
            evaluation=evaluation.kind,
            settings=decisive(settings, "evaluate"),
            images=str(images),
            weights=producer.fingerprint,
        )
        job = f"evaluate.{key}.{name}"
        out = _dir(job, print_)
        command = self.tools.evaluate(
            evaluation.kind,
            config,
            self.settings.overlay,
            self.run_dir / producer.outputs[-1],
            key,
            row.epochs,
            self.run_dir / out,
            images,
            words(overrides),
        )
        epochs = producer.total or row.epochs
        return Job(
            name=job,
            kind="evaluate",
            row=row.part_of or key,
            task=f"{evaluation.kind}_{epochs:.0f}ep" if epochs else evaluation.kind,
            fingerprint=print_,
            needs=(producer.name,),
            commands=(command,),
            outputs=(f"{out}/result.json",),
            total=_number(settings.get("LINEAR.EPOCHS")) if evaluation.kind == "linear" else None,
            counter="epoch",
            data=str(images),
            recipe=self._recipe(config.stem, "LINEAR.BATCH_SIZE" in overrides),
        )

    def search(self, key: str, row: Row, task_key: str, task: Task, converted: Job | None) -> list[Job]:
        """The learning rate's search: a point for each rate of the grid, then the choice."""
        search = self.experiment.lr_search
        assert search is not None
        for where, changes in ((f"tasks.{task_key}.overrides", task.overrides), (f"rows.{key}.finetune", row.finetune)):
            if LR in changes:
                raise UserError(f"{where} sets {LR}, which lr_search looks for; leave it out of one of them")
        role = {"role": "lr_search", "select_on": search.select_on}
        options = ("--role", "lr_search", "--select-on", search.select_on)
        points = []
        for lr in search.grid:
            changed = {**task.overrides, **row.finetune, LR: lr}
            about = {"name": f"search.{key}.{task_key}.lr{lr:g}", "kind": "search", "role": "lr_search"}
            points.append(self._trial(key, row, task_key, task, changed, search.seed, converted, options, role, about))
        print_ = fingerprint(
            kind="choose",
            row=key,
            task=task_key,
            metric=search.metric,
            points=[(lr, point.fingerprint) for lr, point in zip(search.grid, points, strict=True)],
        )
        name = f"choose.{key}.{task_key}"
        record = f"{_dir(name, print_)}/lr_search.json"
        folders = [self.run_dir / point.dir for point in points]
        choose = Job(
            name=name,
            kind="choose",
            row=row.part_of or key,
            task=task_key,
            fingerprint=print_,
            needs=tuple(point.name for point in points),
            commands=(
                self.tools.choose(
                    folders, row.part_of or key, task_key, search.metric, search.grid, self.run_dir / record
                ),
            ),
            outputs=(record,),
        )
        return [*points, choose]

    def finetune(
        self, key: str, row: Row, task_key: str, task: Task, trial: int, converted: Job | None, choose: Job | None
    ) -> Job:
        """One trial of a row on a task, from converted weights or from scratch, at the chosen lr if there is one."""
        seed = self.experiment.seed(trial)
        overrides = {**task.overrides, **row.finetune}
        options: tuple[str, ...] = ()
        decides: dict[str, str] = {}
        if choose is not None:
            options = ("--lr-from", str(self.run_dir / choose.outputs[0]))
            decides = {"lr": choose.fingerprint}
        about = {"name": f"finetune.{key}.{task_key}.s{seed}", "kind": "finetune", "trial": trial + 1}
        job = self._trial(key, row, task_key, task, overrides, seed, converted, options, decides, about)
        return job if choose is None else replace(job, needs=(*job.needs, choose.name))

    def _trial(
        self,
        key: str,
        row: Row,
        task_key: str,
        task: Task,
        overrides: dict[str, Any],
        seed: int,
        converted: Job | None,
        options: tuple[str, ...],
        decides: dict[str, str],
        about: dict[str, Any],
    ) -> Job:
        """A run of tools/transfer.py.

        Args:
            overrides: keys laid over the task's config.
            converted: what makes the weights; None from scratch.
            options: words about the lr's search.
            decides: what else decides the result, for the fingerprint.
            about: the job's own name, kind and place among its like.
        """
        config, detection = paths.config_file(task.config), self._root("detection", f"task {task_key} fine-tunes")
        settings = self.settings.resolved(config, "transfer", overrides)
        print_ = fingerprint(
            kind="finetune",
            settings=decisive(settings, "transfer"),
            detection=str(detection),
            seed=seed,
            weights=converted.fingerprint if converted else "scratch",
            **decides,
        )
        out = _dir(about["name"], print_)
        weights = str(self.run_dir / converted.outputs[0]) if converted else "scratch"
        return Job(
            **about,
            row=row.part_of or key,
            task=task_key,
            seed=seed,
            fingerprint=print_,
            needs=(converted.name,) if converted else (),
            commands=(
                self.tools.transfer(
                    config,
                    self.settings.overlay,
                    weights,
                    seed,
                    self.run_dir / out,
                    detection,
                    words(overrides),
                    options,
                ),
            ),
            outputs=(f"{out}/result.json",),
            total=_number(settings.get("SOLVER.MAX_ITER")),
            data=str(detection),
            recipe=self._recipe(settings.get("TRANSFER.TASK"), "SOLVER.IMS_PER_BATCH" in overrides),
        )

    def table(self, jobs: Sequence[Job]) -> Job:
        """The table reads the trials' and evaluations' results and the pre-training curves."""
        experiment = self.experiment
        read: tuple[Kind, ...] = ("pretrain", "evaluate", "choose", "finetune")
        inputs = [job for job in jobs if job.kind in read]
        print_ = fingerprint(
            kind="table",
            rows=[(key, row.label, row.expected) for key, row in experiment.rows.items()],
            tasks=[(key, task.trials) for key, task in experiment.tasks.items()],
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

    def _recipe(self, name: Any, another_batch: bool) -> str | None:
        return str(name) if name and self.settings.overlay is None and not another_batch else None

    def _root(self, which: str, who: str) -> Path:
        given = getattr(self.experiment.data, which)
        if not given:
            raise UserError(f"data.{which} is not given but {who}; add it to the file or pass --set data.{which}=DIR")
        return paths.absolute(given)


def _dir(name: str, print_: str) -> str:
    return f"jobs/{name}-{print_[:8]}"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 else None
