"""From an experiment to its graph: pretrain → convert → evaluate; search of the lr → fine-tune × trials → table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_transfer.errors import UserError
from ssl_transfer.formats.graph import GraphRow, GraphTask, JobKind
from transfer.experiment.commands import Arguments, spell_overrides
from transfer.experiment.fingerprints import ConfigReader, WeightDigests, fingerprint
from transfer.experiment.graph import Graph, Job, job_dir
from transfer.experiment.load import ExperimentSource, absolute, config_path, run_dir_of
from transfer.experiment.spec import EvaluationSpec, Experiment, RowSpec, TaskSpec
from transfer.weights.public import PublicCheckpoint, checkpoint_file

DEFAULT_EVALUATIONS = {
    "knn": "configs/evaluation/knn_imagenet_k200_t0.2.yaml",
    "linear": "configs/evaluation/linear_imagenet_lars_b4096_90ep.yaml",
}
"""The recipe of each kind if the experiment names none; the default of tools/evaluate.py, too."""
LR = "SOLVER.BASE_LR"
TABLE_FORMATS = {"md": "table.md", "html": "table.html"}


def build_graph(
    experiment: Experiment,
    source: ExperimentSource,
    *,
    digests: WeightDigests | None = None,
    public_weights: Mapping[str, PublicCheckpoint] | None = None,
) -> Graph:
    """The experiment's graph; reads config files and hashes weights, writes nothing.

    Raises:
        UserError: a config file, the overlay or a checkpoint is missing, or a data root that is needed is not given.
    """
    run_dir = run_dir_of(experiment)
    overlay = config_path(experiment.overlay, "overlays") if experiment.overlay else None
    builder = JobBuilder(
        experiment, run_dir, digests or WeightDigests(run_dir), ConfigReader(overlay, run_dir), public_weights or {}
    )
    jobs = [job for key, row in experiment.rows.items() for job in builder.row_jobs(key, row)]
    jobs.append(builder.table(jobs))
    return Graph(
        experiment=experiment.name,
        source=source.text,
        sets=source.sets,
        rows=_table_rows(experiment),
        tasks=tuple(GraphTask(key=key, trials=task.trials) for key, task in experiment.tasks.items()),
        jobs={job.name: job for job in jobs},
    )


def _table_rows(experiment: Experiment) -> tuple[GraphRow, ...]:
    """The table's rows; several rows of the experiment may fill one."""
    found: dict[str, GraphRow] = {}
    for key, row in experiment.rows.items():
        name = row.table_row or key
        if name not in found or name == key:
            found[name] = GraphRow(key=name, label=row.label or name, expected=row.expected)
    return tuple(found.values())


@dataclass(frozen=True)
class JobBuilder:
    """Makes the jobs, one method for each kind: what it runs, what it needs, what it writes, its fingerprint."""

    experiment: Experiment
    run_dir: Path
    digests: WeightDigests
    settings: ConfigReader
    public_weights: Mapping[str, PublicCheckpoint]

    def row_jobs(self, key: str, row: RowSpec) -> list[Job]:
        experiment = self.experiment
        jobs: list[Job] = []
        backbone: Job | None = None  # writes a backbone file
        converted: Job | None = None  # writes Detectron2's format
        if row.pretrain:
            backbone = self.pretrain(key, row)
            jobs.append(backbone)
        if (experiment.tasks and not row.scratch) or (experiment.evaluations and row.weights):
            converted = self.convert(key, row, backbone)
            jobs.append(converted)
        backbone = backbone or converted
        if backbone is not None:
            jobs += [self.evaluate(key, row, name, one, backbone) for name, one in experiment.evaluations.items()]
        for task_key, task in experiment.tasks.items():
            cell = _CellSpec(key, row, task_key, task, converted)
            self._check_arch(cell)
            choose: Job | None = None
            if experiment.lr_search and experiment.lr_search.covers(key, task_key):
                jobs += self.search(cell)
                choose = jobs[-1]
            jobs += [self.finetune(cell, number, choose) for number in range(task.trials)]
        return jobs

    def pretrain(self, key: str, row: RowSpec) -> Job:
        assert row.pretrain is not None
        config, images = (
            config_path(row.pretrain.config, "pretrain"),
            self._data_root("images", f"row {key} pre-trains"),
        )
        overrides = row.pretrain.overrides
        settings = self.settings.resolved(config, "pretrain", overrides)
        name = f"pretrain.{key}"
        print_ = self.settings.fingerprint(
            name, "pretrain", settings, data=images, needs=(), kind="pretrain", images=str(images)
        )
        out = job_dir(name, print_)
        arguments = Arguments(
            config=config,
            overlay=self.settings.overlay,
            options={"resume": True, "output": str(self.run_dir / out)},
            overrides={"DATA.ROOT": str(images), **spell_overrides(overrides)},
            data="DATA.ROOT",
        )
        return self._job(
            *(key, row, "pretrain", name, print_),
            args=(arguments,),
            outputs=(f"{out}/result.json", f"{out}/backbone.safetensors"),
            total=_positive(settings.get("SOLVER.EPOCHS")),
            counter="epoch",
            data=str(images),
            recipe=self._recipe(config.stem, "SOLVER.BATCH_SIZE" in overrides),
        )

    def convert(self, key: str, row: RowSpec, producer: Job | None) -> Job:
        """The row's conversion: of its own pre-training's backbone, or of a given checkpoint."""
        layout, branch = row.source, row.branch
        if producer is not None:
            checkpoint = self.run_dir / producer.dir / "backbone.safetensors"
            weights = producer.fingerprint
        else:
            entry = self.public_weights.get(key)
            checkpoint = checkpoint_file(absolute(row.weights or "")) if entry is None else entry.file
            # One that is not downloaded yet has no digest: `plan` names it, `submit` downloads it first.
            weights = self.digests.of(checkpoint) if entry is None or checkpoint.exists() else str(row.weights)
            layout = layout or (entry.layout if entry and not row.prefix else None)
            branch = branch or (entry.branch if entry else None)
        place = (
            {"prefix": row.prefix} if row.prefix else {}
        )  # absent by default, as in fingerprints of earlier releases
        print_ = fingerprint(kind="convert", weights=weights, source=layout, branch=branch, **place)
        name = f"convert.{key}"
        out = job_dir(name, print_)
        options: dict[str, str | bool] = {"source": layout or False, "branch": branch or False, **place}
        options["trust-checkpoint"] = row.trust
        args, outputs = [], []
        if self.experiment.tasks:
            args.append(Arguments((str(checkpoint), str(self.run_dir / out / f"{key}.pkl")), options=options))
            outputs += [f"{out}/{key}.pkl", f"{out}/{key}.manifest.json"]
        if self.experiment.evaluations and producer is None:
            file = self.run_dir / out / f"{key}.safetensors"
            args.append(Arguments((str(checkpoint), str(file)), options={**options, "to": "safetensors"}))
            outputs.append(f"{out}/{key}.safetensors")
        needs = (producer.name,) if producer else ()
        return self._job(*(key, row, "convert", name, print_), args=tuple(args), needs=needs, outputs=tuple(outputs))

    def evaluate(self, key: str, row: RowSpec, name: str, evaluation: EvaluationSpec, producer: Job) -> Job:
        """An evaluation of the backbone file that `producer` writes as its last output."""
        images = self._data_root("images", f"evaluation {name} measures")
        config = config_path(evaluation.config or DEFAULT_EVALUATIONS[evaluation.kind], "evaluation")
        overrides = evaluation.overrides
        settings = self.settings.resolved(config, "evaluate", overrides)
        job_name = f"evaluate.{key}.{name}"
        print_ = self.settings.fingerprint(
            job_name,
            "evaluate",
            settings,
            data=images,
            needs=(producer.fingerprint,),
            kind="evaluate",
            evaluation=evaluation.kind,
            images=str(images),
            weights=producer.fingerprint,
        )
        out = job_dir(job_name, print_)
        options: dict[str, str | bool] = {"weights": str(self.run_dir / producer.outputs[-1]), "name": key}
        options |= {"pretrain-epochs": str(row.epochs)} if row.epochs else {}
        options |= {"data": str(images), "resume": True, "output": str(self.run_dir / out)}
        arguments = Arguments(
            (evaluation.kind,),
            config=config,
            overlay=self.settings.overlay,
            options=options,
            overrides=spell_overrides(overrides),
            data="data",
        )
        epochs = producer.total or row.epochs
        return self._job(
            *(key, row, "evaluate", job_name, print_),
            task=f"{evaluation.kind}_{epochs:.0f}ep" if epochs else evaluation.kind,
            needs=(producer.name,),
            args=(arguments,),
            outputs=(f"{out}/result.json",),
            total=_positive(settings.get("LINEAR.EPOCHS")) if evaluation.kind == "linear" else None,
            counter="epoch",
            data=str(images),
            recipe=self._recipe(config.stem, "LINEAR.BATCH_SIZE" in overrides),
        )

    def search(self, cell: _CellSpec) -> list[Job]:
        """The search of the learning rate: a candidate for each rate of the grid, then the choice."""
        search, key, row = self.experiment.lr_search, cell.key, cell.row
        assert search is not None
        sources = {f"tasks.{cell.task_key}.overrides": cell.task.overrides, f"rows.{key}.finetune": row.finetune}
        for where, changes in sources.items():
            if LR in changes:
                raise UserError(f"{where} sets {LR}, which lr_search looks for; leave it out of one of them")
        candidates = [
            self._transfer(
                cell,
                f"search.{key}.{cell.task_key}.lr{lr:g}",
                "search",
                overrides={**cell.overrides, LR: lr},
                seed=search.seed,
                options={"role": "lr_search", "select-on": search.select_on},
                decides={"role": "lr_search", "select_on": search.select_on},
                role="lr_search",
            )
            for lr in search.grid
        ]
        print_ = fingerprint(
            kind="choose",
            row=key,
            task=cell.task_key,
            metric=search.metric,
            points=[(lr, job.fingerprint) for lr, job in zip(search.grid, candidates, strict=True)],
        )
        name = f"choose.{key}.{cell.task_key}"
        record = f"{job_dir(name, print_)}/lr_search.json"
        options: dict[str, str | Sequence[str] | bool] = {
            "row": row.table_row or key,
            "task": cell.task_key,
            "metric": search.metric,
        }
        grid = [repr(lr) for lr in search.grid]
        folders = [str(self.run_dir / job.dir) for job in candidates]
        arguments = Arguments(
            ("choose", *folders), options={**options, "grid": grid, "output": str(self.run_dir / record)}
        )
        choose = self._job(
            *(key, row, "choose", name, print_),
            task=cell.task_key,
            needs=tuple(job.name for job in candidates),
            args=(arguments,),
            outputs=(record,),
        )
        return [*candidates, choose]

    def finetune(self, cell: _CellSpec, number: int, choose: Job | None) -> Job:
        """One trial of a row on a task, at the learning rate that `choose` found, if it is searched."""
        seed = self.experiment.seed(number)
        return self._transfer(
            cell,
            f"finetune.{cell.key}.{cell.task_key}.s{seed}",
            "finetune",
            overrides=cell.overrides,
            seed=seed,
            options={"lr-from": str(self.run_dir / choose.outputs[0])} if choose else {},
            decides={"lr": choose.fingerprint} if choose else {},
            needs=(choose.name,) if choose else (),
            trial=number + 1,
        )

    def _transfer(
        self,
        cell: _CellSpec,
        name: str,
        kind: JobKind,
        *,
        overrides: dict[str, Any],
        seed: int,
        options: Mapping[str, str],
        decides: Mapping[str, str],
        needs: tuple[str, ...] = (),
        **fields: Any,
    ) -> Job:
        """A run of tools/transfer.py.

        Args:
            name, kind: of the job.
            overrides: keys laid over the task's config.
            options: options of the tool about the search of the learning rate.
            decides: what else decides the result, for the fingerprint.
            needs: the jobs that it needs besides the conversion.
            fields: further fields of the job.
        """
        config = config_path(cell.task.config, "transfer")
        detection = self._data_root("detection", f"task {cell.task_key} fine-tunes")
        settings, converted = self.settings.resolved(config, "transfer", overrides), cell.converted
        print_ = self.settings.fingerprint(
            name,
            "transfer",
            settings,
            data=detection,
            needs=(*((converted.fingerprint,) if converted else ()), *((decides["lr"],) if "lr" in decides else ())),
            kind="finetune",
            detection=str(detection),
            seed=seed,
            weights=converted.fingerprint if converted else "scratch",
            **decides,
        )
        out = job_dir(name, print_)
        weights = str(self.run_dir / converted.outputs[0]) if converted else "scratch"
        end: dict[str, str | bool] = {"resume": True, "output": str(self.run_dir / out)}
        arguments = Arguments(
            config=config,
            overlay=self.settings.overlay,
            options={"weights": weights, "seed": str(seed), **options, **end},
            overrides={"TRANSFER.DATA_ROOT": str(detection), **spell_overrides(overrides)},
            data="TRANSFER.DATA_ROOT",
        )
        return self._job(
            *(cell.key, cell.row, kind, name, print_),
            task=cell.task_key,
            seed=seed,
            needs=((converted.name,) if converted else ()) + needs,
            args=(arguments,),
            outputs=(f"{out}/result.json",),
            total=_positive(settings.get("SOLVER.MAX_ITER")),
            data=str(detection),
            recipe=self._recipe(settings.get("TRANSFER.TASK"), "SOLVER.IMS_PER_BATCH" in overrides),
            **fields,
        )

    def _check_arch(self, cell: _CellSpec) -> None:
        """Refuse a row whose pre-training makes another ResNet than the task's detector has.

        Of a checkpoint the trial says so, before its first step: only its tensors tell what it is.

        Raises:
            UserError: they do not fit together.
        """
        if (recipe := cell.row.pretrain) is None:
            return
        pretrain = self.settings.resolved(config_path(recipe.config, "pretrain"), "pretrain", recipe.overrides)
        settings = self.settings.resolved(config_path(cell.task.config, "transfer"), "transfer", cell.overrides)
        arch, depth = str(pretrain.get("MODEL.ARCH", "resnet50")), settings.get("MODEL.RESNETS.DEPTH", 50)
        where = f"rows.{cell.key} pre-trains a {arch} (MODEL.ARCH)"
        if arch in ("resnet18", "resnet34") and "fpn" not in str(settings.get("MODEL.BACKBONE.NAME")):
            raise UserError(
                f"{where}, which task {cell.task_key} cannot take: Detectron2's C4 head builds bottleneck blocks only; "
                "use an FPN task, such as coco_fpn, or MODEL.ARCH resnet50"
            )
        if arch != f"resnet{depth}":
            key = f"tasks.{cell.task_key}.overrides.MODEL.RESNETS.DEPTH={arch.removeprefix('resnet')}"
            advice = f"--set {key}" if arch[6:].isdecimal() else f"use MODEL.ARCH resnet{depth}"
            raise UserError(f"{where}, but the detector of task {cell.task_key} has a ResNet-{depth}; {advice}")

    def table(self, jobs: Sequence[Job]) -> Job:
        """The table; it reads the results of trials and evaluations, and the curves of pre-training."""
        experiment = self.experiment
        inputs = [job for job in jobs if job.kind in ("pretrain", "evaluate", "choose", "finetune")]
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
            outputs=tuple(TABLE_FORMATS.values()),
            tool="table",
            args=tuple(
                Arguments((str(self.run_dir),), options={"format": form, "output": str(self.run_dir / file)})
                for form, file in TABLE_FORMATS.items()
            ),
        )

    def _job(self, key: str, row: RowSpec, kind: JobKind, name: str, print_: str, **fields: Any) -> Job:
        return Job(
            **{"needs": (), **fields},
            name=name,
            kind=kind,
            fingerprint=print_,
            row=row.table_row or key,
            row_key=key,
            tool=TOOLS[kind],
        )

    def _recipe(self, name: Any, has_other_batch: bool) -> str | None:
        return str(name) if name and self.settings.overlay is None and not has_other_batch else None

    def _data_root(self, which: str, who: str) -> Path:
        given = getattr(self.experiment.data, which)
        if not given:
            raise UserError(f"data.{which} is not given but {who}; add it to the file or pass --set data.{which}=DIR")
        return absolute(given)


TOOLS: Mapping[JobKind, str] = {
    "pretrain": "pretrain",
    "convert": "convert",
    "evaluate": "evaluate",
    "search": "transfer",
    "choose": "lr_search",
    "finetune": "transfer",
}
"""The tool that runs each kind of a row's jobs."""


@dataclass(frozen=True)
class _CellSpec:
    """A row on a task, and the job that converts its weights (None: from scratch)."""

    key: str
    row: RowSpec
    task_key: str
    task: TaskSpec
    converted: Job | None

    @property
    def overrides(self) -> dict[str, Any]:
        return {**self.task.overrides, **self.row.finetune}


def _positive(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 else None
