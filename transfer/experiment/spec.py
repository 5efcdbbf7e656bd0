"""The sections of an experiment file and of a site file, as pydantic models."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from common.errors import nearest

logger = logging.getLogger(__name__)


class Section(BaseModel):
    """A section that refuses unknown keys and values of another type.

    Attributes:
        renamed_keys: keys that had another name in the last release → their name now.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    renamed_keys: ClassVar[dict[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _read_renamed_keys(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        renamed = {old: new for old, new in cls.renamed_keys.items() if old in content}
        for old, new in renamed.items():
            if new in content:
                raise ValueError(f"{old} is the former name of {new}; remove it")
            logger.warning("%s is now called %s; the old name is read for one more release", old, new)
        return {renamed.get(key, key): value for key, value in content.items()}


def _check_key(key: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_+-]*", key):
        raise ValueError(f"{key!r} is no name; use letters, digits, '-', '_' and '+'")
    return key


Key = Annotated[str, AfterValidator(_check_key)]
"""A name that becomes a part of job and folder names, where dots separate."""


def _expand(path: str) -> str:
    return os.path.expandvars(Path(path).expanduser())


PathText = Annotated[str, StringConstraints(min_length=1), AfterValidator(_expand)]
"""A path as written, with `~` and `$VARIABLE` expanded."""


def _check_dotted(overrides: dict[str, Any]) -> dict[str, Any]:
    for key, value in overrides.items():
        if isinstance(value, dict) and "." not in key:
            inner = next(iter(value), "KEY")
            raise ValueError(f"overrides are dotted keys: write {key}.{inner}: …, not {key}: {{{inner}: …}}")
    return overrides


Overrides = Annotated[dict[str, Any], AfterValidator(_check_dotted)]
"""Dotted config keys and their values, as `KEY VALUE` on a command line."""


def _spell_number(value: Any) -> Any:
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


EnvironmentValue = Annotated[str, BeforeValidator(_spell_number)]
"""The value of an environment variable; a number is taken as its text."""


def _check_long_names(options: dict[str, Any]) -> dict[str, Any]:
    for key in options:
        if key.startswith("-") or "_" in key:
            raise ValueError(f"write sbatch's option {key!r} as {key.lstrip('-').replace('_', '-')!r}")
    return options


class Resources(Section):
    """What one job of a stage gets from Slurm. A missing key falls back to the layer below.

    Attributes:
        nodes: the number of machines.
        gpus: GPUs per node, one process each; 0: one process on the CPU.
        tasks: processes per node, if it is not one per GPU.
        cpus: CPU cores per process.
        memory_gb: memory per node.
        hours: the time limit; a job that reaches it saves a checkpoint, is requeued and continues.
        signal_seconds: how long before the limit the job is told to save.
        partition, account, qos, constraint: sbatch's options of these names.
        gres: requests the GPUs by `--gres` (such as `gpu:a100:8`) instead of `--gpus-per-node`.
        sbatch: any other option of sbatch by its long name; `true` for one without a value.
        setup: lines of shell before the job (`module load cuda`); those of all layers, in order.
        container: words before `python` (`apptainer exec --nv /images/torch.sif`).
        python: the interpreter, if it is not the one that submits (in a container: `python3`).
        environment: variables of the job.
        copy_data_to: a folder on the node's own disk; the data root is copied there first, once per node. `$VARIABLES`
            are the job's.
    """

    renamed_keys: ClassVar[dict[str, str]] = {"stage_to": "copy_data_to"}

    nodes: int | None = Field(default=None, ge=1)
    gpus: int | None = Field(default=None, ge=0)
    tasks: int | None = Field(default=None, ge=1)
    cpus: int | None = Field(default=None, ge=1)
    memory_gb: float | None = Field(default=None, gt=0)
    hours: float | None = Field(default=None, gt=0)
    signal_seconds: int | None = Field(default=None, ge=1)
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    sbatch: Annotated[dict[str, str | int | float | bool], AfterValidator(_check_long_names)] = Field(
        default_factory=dict
    )
    setup: list[str] = Field(default_factory=list)
    container: str | None = None
    python: str | None = None
    environment: dict[str, EnvironmentValue] = Field(default_factory=dict)
    copy_data_to: str | None = None

    @property
    def tasks_per_node(self) -> int:
        """Processes per node: one per GPU by default."""
        return self.tasks or self.gpus or 1

    def over(self, lower: Resources) -> Resources:
        """These, completed by `lower`; options and variables are merged key by key, set-up lines appended."""
        merged: dict[str, Any] = {}
        for name in type(self).model_fields:
            mine, theirs = getattr(self, name), getattr(lower, name)
            if isinstance(mine, dict):
                merged[name] = {**theirs, **mine}
            elif isinstance(mine, list):
                merged[name] = [*theirs, *mine]
            else:
                merged[name] = theirs if mine is None else mine
        return Resources(**merged)


SINGLE_PROCESS = ("convert", "choose", "table")
"""Stages whose tools are one small process, whatever the others get."""
SIZE = ("nodes", "gpus", "tasks", "cpus", "memory_gb", "hours", "signal_seconds", "gres", "copy_data_to")
"""Keys of `default` that do not apply to these stages."""


class StageResources(Section):
    """Resources of every stage.

    Attributes:
        default: of the stages that train or evaluate; for the others only where they run (partition, set-up lines,
            container …), not their size.
        pretrain, evaluate, finetune, convert, choose, table: of the jobs of that kind, over the default.
        search: of the candidates of a learning-rate search, over `finetune`.
    """

    default: Resources = Field(default_factory=Resources)
    pretrain: Resources = Field(default_factory=Resources)
    convert: Resources = Field(default_factory=Resources)
    evaluate: Resources = Field(default_factory=Resources)
    search: Resources = Field(default_factory=Resources)
    choose: Resources = Field(default_factory=Resources)
    finetune: Resources = Field(default_factory=Resources)
    table: Resources = Field(default_factory=Resources)

    @model_validator(mode="after")
    def _check_single_processes(self) -> StageResources:
        for kind in SINGLE_PROCESS:
            own: Resources = getattr(self, kind)
            if (own.nodes or 1) * own.tasks_per_node > 1:
                raise ValueError(f"{kind} is one process: give it one node, one task and one GPU at most")
        return self

    def of(self, kind: str, lower: Resources) -> Resources:
        """What a job of that kind gets from this layer, over `lower`."""
        default = self.default
        if kind in SINGLE_PROCESS:
            default = default.model_copy(update=dict.fromkeys(SIZE))
        found = default.over(lower)
        if kind == "search":
            found = self.finetune.over(found)
        own: Resources = getattr(self, kind)
        return own.over(found)


SMALL = Resources(nodes=1, gpus=0, cpus=2, memory_gb=8, hours=1, signal_seconds=120)
DEFAULT_RESOURCES = StageResources(
    default=Resources(nodes=1, gpus=1, cpus=4, memory_gb=32, hours=24, signal_seconds=120),
    convert=SMALL,
    choose=SMALL,
    table=SMALL,
)


def resources_for(kind: str, layers: Iterable[StageResources]) -> Resources:
    """What a job of that kind gets.

    Args:
        kind: the stage.
        layers: the weakest first (the site's, the experiment's, the row's), over the defaults.
    """
    found = Resources()
    for layer in (DEFAULT_RESOURCES, *layers):
        found = layer.of(kind, found)
    return found


class StepTime(Section):
    """A measured duration of a training step.

    Attributes:
        recipes: the tasks or configs (by stem) that it applies to.
        seconds: duration of one step.
        per: what a step is.
        gpus: the GPUs that were used together.
        device: their type.
        source: who measured it.
    """

    recipes: list[str] = Field(min_length=1)
    seconds: Annotated[float, Field(gt=0)]
    per: Literal["iteration", "epoch"] = "iteration"
    gpus: int = Field(ge=1)
    device: str
    source: str = Field(min_length=1)


class SiteConfig(Section):
    """The user's site file: what applies to one cluster, whatever the experiment.

    Attributes:
        resources: of all experiments on this cluster, under what the experiment itself says.
        seconds: durations of steps measured here, for `plan`, as in configs/seconds.yaml.
    """

    resources: StageResources = Field(default_factory=StageResources)
    seconds: list[StepTime] = Field(default_factory=list)


class RecipeSpec(Section):
    """A config file and what is changed in it.

    Attributes:
        config: the config file.
        overrides: keys laid over it, after the experiment's overlay.
    """

    config: PathText
    overrides: Overrides = Field(default_factory=dict)


class TaskSpec(RecipeSpec):
    """A column of the table: a fine-tuning config and the number of its trials.

    Attributes:
        trials: the number of seeds.
    """

    trials: int = Field(default=1, ge=1)


class EvaluationSpec(Section):
    """An evaluation of the weights themselves, without fine-tuning: a cell of Table 4.

    Attributes:
        kind: `linear` or `knn`.
        config: the recipe; by default ImageNet's of configs/evaluation/.
        overrides: keys laid over it.
    """

    kind: Literal["linear", "knn"] = "linear"
    config: PathText | None = None
    overrides: Overrides = Field(default_factory=dict)


class RowSpec(Section):
    """A row of the table. Its weights come from exactly one of `pretrain`, `weights` and `scratch`.

    Attributes:
        label: its heading in the table; by default the row's key.
        expected: the row of `configs/expected/*.yaml` that it is compared with.
        pretrain: a pre-training recipe.
        weights: a ResNet-50 checkpoint of any known layout, or `zoo:NAME`, which `submit` downloads; it is converted.
        scratch: no weights.
        source: the checkpoint's layout, if its content does not tell (`convert.py --source`).
        branch: which of two encoders (`convert.py --branch`).
        trust: allow the checkpoint's pickle to run code (`convert.py --trust-checkpoint`).
        finetune: overrides for the fine-tuning of this row alone, over the task's.
        table_row: the table's row for its results, if several runs fill one row (Table 4: one run per number of
            epochs); by default its own.
        epochs: how long `weights` were pre-trained; Table 4's column.
        resources: what this row's jobs get from Slurm, over the experiment's.
    """

    renamed_keys: ClassVar[dict[str, str]] = {"part_of": "table_row"}

    label: str | None = None
    expected: str | None = None
    pretrain: RecipeSpec | None = None
    weights: PathText | None = None
    scratch: bool = False
    source: str | None = None
    branch: str | None = None
    trust: bool = False
    finetune: Overrides = Field(default_factory=dict)
    table_row: Key | None = None
    epochs: int | None = Field(default=None, ge=1)
    resources: StageResources = Field(default_factory=StageResources)

    @model_validator(mode="after")
    def _check_weights(self) -> RowSpec:
        given = [name for name in ("pretrain", "weights", "scratch") if getattr(self, name)]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"a row has exactly one of pretrain, weights, scratch; this one has {found}")
        if self.scratch and (self.source or self.branch or self.trust):
            raise ValueError("a scratch row converts nothing; remove source, branch and trust")
        if self.epochs and not self.weights:
            raise ValueError("epochs says how long given weights were trained; a recipe says so itself: remove it")
        return self


class DataRoots(Section):
    """Where the images are.

    Attributes:
        images: the ImageFolder of pre-training and evaluations.
        detection: the folder that holds VOC2007/, VOC2012/ and coco/.
    """

    images: PathText | None = None
    detection: PathText | None = None


class LocalSettings(Section):
    """What `--cluster local` may use of this machine.

    Attributes:
        slots: how many jobs run side by side.
        threads: OMP_NUM_THREADS of each.
        gpus: GPUs of each slot, one process each, from the first ones of the machine or from CUDA_VISIBLE_DEVICES;
            0: leaves CUDA_VISIBLE_DEVICES as it is.
    """

    slots: int = Field(default=1, ge=1)
    threads: int = Field(default=1, ge=1)
    gpus: int = Field(default=0, ge=0)


class LrSearchSpec(Section):
    """A search of the fine-tuning learning rate, for every row on every task, before the reported trials.

    Attributes:
        grid: the learning rates to try.
        select_on: what the candidates are evaluated on: `test`, as in the paper, or `heldout`, a part of the training
            images.
        seed: the candidates' seed; none of the reported trials'.
        metric: what is maximised.
        rows: the rows it is made for, by default all; the others keep their task's learning rate.
        tasks: the tasks it is made for, by default all.
    """

    grid: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    select_on: Literal["test", "heldout"]
    seed: int = Field(default=1000, ge=0)
    metric: str = "bbox/AP"
    rows: list[str] | None = None
    tasks: list[str] | None = None

    def covers(self, row: str, task: str) -> bool:
        """Whether the learning rate of a row on a task is searched."""
        return (self.rows is None or row in self.rows) and (self.tasks is None or task in self.tasks)


class SlurmSettings(Section):
    """How `--cluster slurm` submits jobs.

    Attributes:
        array_parallelism: how many trials of one array run at a time.
        requeues: how often a job is requeued (time limit, preemption, a failed node or process) before it counts as
            failed.
        snapshot: copy the code at the submit, and run the copy: later edits change nothing.
    """

    array_parallelism: int = Field(default=64, ge=1)
    requeues: int = Field(default=20, ge=0)
    snapshot: bool = False


class Experiment(Section):
    """The whole experiment file.

    Attributes:
        name: the experiment's name.
        notes: text that `plan` shows.
        run_dir: where everything is written; by default `runs/<name>`.
        rows: the table's rows by key, in order.
        tasks: the table's columns by key, in order; `{}` for an experiment that only pre-trains or evaluates.
        evaluations: linear or kNN evaluations of every row's weights (not of scratch).
        lr_search: how the fine-tuning learning rate is found; none: each task's own.
        seeds: the trials' seeds; a task with n trials uses the first n; by default 1, 2, 3, …
        overlay: a file that makes every stage fit a small machine.
        data: data roots.
        environment: variables set for every job; no part of a fingerprint.
        local: slots and threads for `--cluster local`.
        slurm: how `--cluster slurm` submits jobs.
        resources: what a job of each stage gets from Slurm, over the site's.
        max_resumes: how often a job that stopped after a checkpoint (exit 75) is restarted in one submit.
    """

    renamed_keys: ClassVar[dict[str, str]] = {"continues": "max_resumes"}

    name: Key
    notes: str | None = None
    run_dir: PathText | None = None
    rows: dict[Key, RowSpec] = Field(min_length=1)
    tasks: dict[Key, TaskSpec]
    evaluations: dict[Key, EvaluationSpec] = Field(default_factory=dict)
    lr_search: LrSearchSpec | None = None
    seeds: list[int] | None = None
    overlay: PathText | None = None
    data: DataRoots = Field(default_factory=DataRoots)
    environment: dict[str, EnvironmentValue] = Field(default_factory=dict)
    local: LocalSettings = Field(default_factory=LocalSettings)
    slurm: SlurmSettings = Field(default_factory=SlurmSettings)
    resources: StageResources = Field(default_factory=StageResources)
    max_resumes: int = Field(default=20, ge=0)

    @model_validator(mode="after")
    def _check_something_to_run(self) -> Experiment:
        if not (self.tasks or self.evaluations or any(row.pretrain for row in self.rows.values())):
            raise ValueError("there is nothing to run: give tasks, evaluations, or a row with pretrain")
        return self

    @model_validator(mode="after")
    def _check_table_rows(self) -> Experiment:
        for key, row in self.rows.items():
            whole = self.rows.get(row.table_row) if row.table_row else None
            if whole is not None and whole.table_row not in (None, row.table_row):
                name = f"{row.table_row} is itself part of {whole.table_row}"
                raise ValueError(f"rows.{key}.table_row: {name}; name that one")
        return self

    @model_validator(mode="after")
    def _check_seeds(self) -> Experiment:
        if self.seeds is None:
            return self
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {self.seeds} names a seed twice")
        for key, task in self.tasks.items():
            if task.trials > len(self.seeds):
                raise ValueError(f"tasks.{key}.trials is {task.trials} but seeds has {len(self.seeds)}; add seeds")
        return self

    @model_validator(mode="after")
    def _check_lr_search(self) -> Experiment:
        search = self.lr_search
        if search is None:
            return self
        for what, named, known in (("rows", search.rows, self.rows), ("tasks", search.tasks, self.tasks)):
            for key in named or ():
                if key not in known:
                    raise ValueError(f"lr_search.{what} names {key!r}; {nearest(key, known)}")
        if len(set(search.grid)) != len(search.grid):
            raise ValueError(f"lr_search.grid {search.grid} names a learning rate twice")
        if search.seed in [self.seed(trial) for task in self.tasks.values() for trial in range(task.trials)]:
            raise ValueError(f"lr_search.seed {search.seed} is a reported trial's; give the search a seed of its own")
        return self

    def seed(self, trial: int) -> int:
        """The seed of a task's trial (counted from 0)."""
        return trial + 1 if self.seeds is None else self.seeds[trial]
