"""The sections of an experiment file and of a site file, as pydantic models."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from common.errors import CONTROL_CHARACTERS, nearest
from common.yaml_file import YAML_BOOLEANS

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
        for key, value in content.items():
            if (
                isinstance(value, str)
                and key not in FREE_TEXT
                and (found := CONTROL_CHARACTERS.search(value.strip("\n")))
            ):
                raise ValueError(f"{key} holds the control character {found[0]!r}; remove it")
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


def _check_long_names(options: dict[str, Any]) -> dict[str, Any]:
    for key in options:
        if key.startswith("-") or "_" in key:
            raise ValueError(f"write sbatch's option {key!r} as {key.lstrip('-').replace('_', '-')!r}")
    return {key: YAML_BOOLEANS.get(str(value).lower(), value) for key, value in options.items()}


def _read_hours(value: Any) -> Any:
    """Slurm's `12:00:00` and `1-12:00:00` in hours."""
    if not isinstance(value, str) or not (found := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+)(?::(\d+))?", value)):
        return value
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    if found[4] is None and found[1] is None:
        raise ValueError(f"{value} is minutes and seconds to Slurm: write {hours + minutes / 60:.4g}, or {value}:00")
    return 24 * days + hours + minutes / 60 + seconds / 3600


Hours = Annotated[float, BeforeValidator(_read_hours), Field(gt=0, le=8784)]
FREE_TEXT = ("label", "notes")
"""Keys whose text is shown and goes to no script and no path: it may hold any character, and is escaped."""


SbatchOptions = Annotated[dict[str, str | int | float | bool], AfterValidator(_check_long_names)]


class Resources(Section):
    """What one job of a stage gets from Slurm. A missing key falls back to the layer below."""

    renamed_keys: ClassVar[dict[str, str]] = {"stage_to": "copy_data_to"}

    nodes: int | None = Field(default=None, ge=1, description="the number of machines")
    gpus: int | None = Field(default=None, ge=0, description="GPUs per node, one process each; 0: the CPU")
    tasks: int | None = Field(default=None, ge=1, description="processes per node, if it is not one per GPU")
    cpus: int | None = Field(default=None, ge=1, description="CPU cores per process")
    memory_gb: float | None = Field(default=None, gt=0, description="memory per node")
    hours: Hours | None = Field(
        default=None, description="time limit, or `12:00:00`; a job that reaches it is requeued and continues"
    )
    signal_seconds: int | None = Field(default=None, ge=1, description="how long before the limit the job saves")
    partition: str | None = Field(default=None, description="sbatch's `--partition`")
    account: str | None = Field(default=None, description="sbatch's `--account`")
    qos: str | None = Field(default=None, description="sbatch's `--qos`")
    constraint: str | None = Field(default=None, description="sbatch's `--constraint`")
    gres: str | None = Field(default=None, description="`gpu:a100:8`: used instead of `--gpus-per-node`")
    sbatch: SbatchOptions = Field(default_factory=dict, description="other options of sbatch; `true`: without a value")
    setup: list[str] = Field(default_factory=list, description="shell lines before the job, of all layers")
    container: str | None = Field(
        default=None, description="words before `python`, such as `apptainer exec --nv x.sif`"
    )
    python: str | None = Field(default=None, description="the interpreter; default: the one that submits")
    environment: dict[str, str] = Field(default_factory=dict, description="variables of the job")
    copy_data_to: str | None = Field(
        default=None, description="a folder on the node's disk, to which the data root is copied first"
    )

    @property
    def tasks_per_node(self) -> int:
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
    """Resources of every stage."""

    default: Resources = Field(
        default_factory=Resources, description="of all stages; convert, choose and table take no size from it"
    )
    pretrain: Resources = Field(default_factory=Resources, description="over the default")
    convert: Resources = Field(default_factory=Resources, description="over the default")
    evaluate: Resources = Field(default_factory=Resources, description="over the default")
    search: Resources = Field(
        default_factory=Resources, description="of the candidates of an lr search, over `finetune`"
    )
    choose: Resources = Field(default_factory=Resources, description="over the default")
    finetune: Resources = Field(default_factory=Resources, description="over the default")
    table: Resources = Field(default_factory=Resources, description="over the default")

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
    """What a job of that kind gets by the layers, the weakest first (site, experiment, row), over the defaults."""
    found = Resources()
    for layer in (DEFAULT_RESOURCES, *layers):
        found = layer.of(kind, found)
    return found


class StepTime(Section):
    """A measured duration of a training step."""

    recipes: list[str] = Field(min_length=1, description="the tasks or configs (by stem) that it applies to")
    seconds: Annotated[float, Field(gt=0)] = Field(description="duration of one step")
    per: Literal["iteration", "epoch"] = Field(default="iteration", description="what a step is")
    gpus: int = Field(ge=1, description="the GPUs that were used together")
    device: str = Field(description="their type")
    source: str = Field(min_length=1, description="who measured it")


class SiteConfig(Section):
    """The user's site file: what applies to one cluster, whatever the experiment."""

    resources: StageResources = Field(default_factory=StageResources, description="under what the experiment says")
    seconds: list[StepTime] = Field(default_factory=list, description="step times measured here, for `plan`")


class RecipeSpec(Section):
    """A config file and what is changed in it."""

    config: PathText = Field(description="the config file")
    overrides: Overrides = Field(default_factory=dict, description="keys laid over it, after the experiment's overlay")


class TaskSpec(RecipeSpec):
    """A column of the table: a fine-tuning config and the number of its trials."""

    trials: int = Field(default=1, ge=1, description="the number of seeds")


class EvaluationSpec(Section):
    """An evaluation of the weights themselves, without fine-tuning: a cell of Table 4."""

    kind: Literal["linear", "knn"] = Field(default="linear", description="`linear` or `knn`")
    config: PathText | None = Field(
        default=None, description="the recipe; by default ImageNet's of configs/evaluation/"
    )
    overrides: Overrides = Field(default_factory=dict, description="keys laid over it")


class RowSpec(Section):
    """A row of the table. Its weights come from exactly one of `pretrain`, `weights` and `scratch`."""

    renamed_keys: ClassVar[dict[str, str]] = {"part_of": "table_row"}

    label: str | None = Field(default=None, description="its heading in the table; by default the row's key")
    expected: str | None = Field(default=None, description="the row of configs/expected/ to compare with")
    pretrain: RecipeSpec | None = Field(default=None, description="a pre-training recipe")
    weights: PathText | None = Field(default=None, description="a ResNet-50 checkpoint, or `zoo:NAME`")
    scratch: bool = Field(default=False, description="no weights")
    source: str | None = Field(default=None, description="the checkpoint's layout; default: detected")
    branch: str | None = Field(default=None, description="which of its two encoders")
    prefix: str | None = Field(default=None, description="where in it the ResNet is, instead of a layout")
    trust: bool = Field(default=False, description="allow its pickle to run code")
    finetune: Overrides = Field(default_factory=dict, description="overrides of this row, over the task's")
    table_row: Key | None = Field(default=None, description="the table's row that its results are in; default: its own")
    epochs: int | None = Field(default=None, ge=1, description="how long `weights` were pre-trained")
    resources: StageResources = Field(default_factory=StageResources, description="over the experiment's")

    @model_validator(mode="after")
    def _check_weights(self) -> RowSpec:
        given = [name for name in ("pretrain", "weights", "scratch") if getattr(self, name)]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"a row has exactly one of pretrain, weights, scratch; this one has {found}")
        if self.scratch and (self.source or self.branch or self.prefix or self.trust):
            raise ValueError("a scratch row converts nothing; remove source, branch, prefix and trust")
        if self.prefix and self.source:
            raise ValueError("prefix and source both say where the ResNet is; remove one")
        if self.epochs and not self.weights:
            raise ValueError("epochs says how long given weights were trained; a recipe says so itself: remove it")
        return self


class DataRoots(Section):
    """Where the images are."""

    images: PathText | None = Field(default=None, description="ImageFolder of pre-training and evaluations")
    detection: PathText | None = Field(default=None, description="the folder that holds VOC2007/, VOC2012/ and coco/")


class LocalSettings(Section):
    """What `--cluster local` may use of this machine."""

    slots: int = Field(default=1, ge=1, description="how many jobs run side by side")
    threads: int = Field(default=1, ge=1, description="OMP_NUM_THREADS of each")
    gpus: int = Field(default=0, ge=0, description="GPUs of each slot, one process each; 0: any")


class LrSearchSpec(Section):
    """A search of the fine-tuning learning rate, for every row on every task, before the reported trials."""

    grid: list[Annotated[float, Field(gt=0)]] = Field(min_length=1, description="the learning rates to try")
    select_on: Literal["test", "heldout"] = Field(description="`heldout`: a part of the training images")
    seed: int = Field(default=1000, ge=0, description="the candidates' seed; none of the reported trials'")
    metric: str = Field(default="bbox/AP", description="what is maximised")
    rows: list[str] | None = Field(default=None, description="default: all; the others keep their task's lr")
    tasks: list[str] | None = Field(default=None, description="default: all")

    def covers(self, row: str, task: str) -> bool:
        return (self.rows is None or row in self.rows) and (self.tasks is None or task in self.tasks)


class SlurmSettings(Section):
    """How `--cluster slurm` submits jobs."""

    array_parallelism: int = Field(default=64, ge=1, description="how many trials of one array run at a time")
    requeues: int = Field(default=20, ge=0, description="how often a job is requeued before it counts as failed")
    snapshot: bool = Field(default=False, description="run a copy of the code as it was submitted")


class Experiment(Section):
    """The whole experiment file."""

    renamed_keys: ClassVar[dict[str, str]] = {"continues": "max_resumes"}

    name: Key = Field(description="the experiment's name")
    notes: str | None = Field(default=None, description="text that `plan` shows")
    run_dir: PathText | None = Field(default=None, description="where everything is written; default: `runs/<name>`")
    rows: dict[Key, RowSpec] = Field(min_length=1, description="the table's rows by key, in order")
    tasks: dict[Key, TaskSpec] = Field(description="the table's columns by key, in order; may be empty")
    evaluations: dict[Key, EvaluationSpec] = Field(
        default_factory=dict, description="evaluations of each row's weights"
    )
    lr_search: LrSearchSpec | None = Field(default=None, description="default: each task has its own lr")
    seeds: list[int] | None = Field(default=None, description="of the trials; default: 1, 2, 3, …")
    overlay: PathText | None = Field(default=None, description="makes every stage fit a small machine")
    data: DataRoots = Field(default_factory=DataRoots, description="data roots")
    environment: dict[str, str] = Field(default_factory=dict, description="variables of every job")
    local: LocalSettings = Field(default_factory=LocalSettings, description="for `--cluster local`")
    slurm: SlurmSettings = Field(default_factory=SlurmSettings, description="for `--cluster slurm`")
    resources: StageResources = Field(default_factory=StageResources, description="over the site's")
    max_resumes: int = Field(default=20, ge=0, description="how often a job is restarted after exit 75")

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
