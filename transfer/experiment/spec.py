"""The sections of an experiment file and of a site file, as pydantic models."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from ssl_transfer.errors import CONTROL_CHARACTERS, nearest
from ssl_transfer.yaml_file import YAML_BOOLEANS

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

GRAPH_OPTIONS = (
    *("array", "dependency", "error", "job-name", "kill-on-invalid-dep", "no-requeue", "open-mode", "output"),
    *("parsable", "requeue", "signal", "test-only", "wait", "wrap"),
)
"""Options of sbatch that the graph itself sets."""
KEY_OF_OPTION = {"nodes": "nodes", "cpus-per-task": "cpus", "time": "hours", "gres": "gres"} | dict.fromkeys(
    ("ntasks", "ntasks-per-node", "tasks-per-node"), "tasks"
)
"""Options of sbatch that have a key of their own."""
GPU_OPTIONS = ("gpus", "gpus-per-node", "gpus-per-task")
"""Other spellings of `gpus`, for sites that want one of them."""
MEMORY_OPTIONS = ("mem", "mem-per-cpu", "mem-per-gpu")
"""Other spellings of `memory_gb`."""


def _check_sbatch_options(options: dict[str, Any]) -> dict[str, Any]:
    for key in options:
        if key.startswith("-") or "_" in key:
            raise ValueError(f"write sbatch's option {key!r} as {key.lstrip('-').replace('_', '-')!r}")
        taken = [name for name in (*GRAPH_OPTIONS, *KEY_OF_OPTION) if name.startswith(key)]  # sbatch reads beginnings
        if taken and key not in (*GPU_OPTIONS, *MEMORY_OPTIONS):
            own = KEY_OF_OPTION.get(taken[0])
            raise ValueError(f"{key!r} is set by {f'the key {own}: use that' if own else 'the graph: remove it'}")
    return {key: YAML_BOOLEANS.get(str(value).lower(), value) for key, value in options.items()}


SbatchOptions = Annotated[dict[str, str | int | float | bool | None], AfterValidator(_check_sbatch_options)]


def _empty_if_none(empty: Any) -> BeforeValidator:
    return BeforeValidator(lambda value: type(empty)() if value is None else value)


def count_gpus(gres: str | None) -> int | None:
    """The GPUs per node that a `--gres` requests by number; None if it names none (`shard:4`, `none`)."""
    found = _GPU.findall(_SOCKETS.sub("", gres or ""))
    return sum(int(count or 1) for _, count in found) if found else None


def _with_gpus(gres: str, gpus: int) -> str | None:
    """The gres with another number of GPUs; unchanged if it names several kinds of them, or none."""
    if count_gpus(gres) == gpus:
        return gres
    gres = _SOCKETS.sub("", gres)
    found = list(_GPU.finditer(gres))
    if len(found) != 1:
        return gres
    rest = [part for part in (gres[: found[0].start()].strip(","), gres[found[0].end() :].lstrip(",")) if part]
    if not gpus:
        return ",".join(rest) or None
    return f"{gres[: found[0].start()]}{found[0].group(1)}:{gpus}{gres[found[0].end() :]}"


_GPU = re.compile(r"(?<![^,])((?:gres[/:])?gpu(?::(?!\d+(?:[,(]|$))[^:=,(]+)?)(?:[:=](\d+))?(?=[,(]|$)")
_SOCKETS = re.compile(r"\([^)]*\)")


class Resources(Section):
    """What one job of a stage gets from Slurm.

    A missing key falls back to the layer below. A key whose value is empty (`null`, `[]`, `{}`) removes that of the
    layers below: the job then gets what Slurm gives by default.
    """

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
    gres: str | None = Field(
        default=None,
        description="`gpu:a100:8`: instead of `--gpus-per-node`; `gpus` follows its number",
    )
    sbatch: Annotated[SbatchOptions, _empty_if_none({})] = Field(
        default_factory=dict, description="other options of sbatch; `true`: without a value, `false`: not that one"
    )
    srun: Annotated[list[str], _empty_if_none([])] = Field(
        default_factory=list, description="words for srun, of all layers, such as `--container-image=x.sqsh`"
    )
    setup: Annotated[list[str], _empty_if_none([])] = Field(
        default_factory=list, description="shell lines before the job, of all layers; the first that fails ends it"
    )
    container: str | None = Field(
        default=None, description="words before `python`, such as `apptainer exec --nv x.sif`"
    )
    python: str | None = Field(default=None, description="the interpreter; default: the one that submits")
    environment: Annotated[dict[str, str], _empty_if_none({})] = Field(
        default_factory=dict, description="variables of the job"
    )
    copy_data_to: str | None = Field(
        default=None, description="a folder on the node's disk, to which the data root is copied first"
    )

    @property
    def tasks_per_node(self) -> int:
        return self.tasks or self.gpus or 1

    @model_validator(mode="after")
    def _check_gpus(self) -> Resources:
        counted = count_gpus(self.gres)
        if self.gpus is not None and counted not in (None, self.gpus):
            raise ValueError(f"gres {self.gres} requests {counted} GPUs and gpus says {self.gpus}; leave one out")
        return self

    def over(self, lower: Resources) -> Resources:
        """These, completed by `lower`; options and variables are merged key by key, lines and words appended."""
        merged: dict[str, Any] = {}
        for name in self.model_fields_set | lower.model_fields_set:
            mine, theirs = getattr(self, name), getattr(lower, name)
            if name not in self.model_fields_set:
                merged[name] = theirs
            elif isinstance(mine, dict) and mine:
                merged[name] = {k: v for k, v in {**theirs, **mine}.items() if v is not None and v is not False}
            else:
                merged[name] = [*theirs, *mine] if isinstance(mine, list) and mine else mine
        changed = self.model_fields_set & {"gpus", "gres"}
        if changed == {"gpus"} and lower.gres:
            merged["gres"] = _with_gpus(lower.gres, self.gpus or 0)
        elif changed == {"gres"} and (counted := count_gpus(self.gres)) is not None:
            merged["gpus"] = counted
        return Resources(**merged)

    def without(self, names: Iterable[str]) -> Resources:
        """These without the named keys, and without the options of sbatch that spell one of them."""
        kept = {name: getattr(self, name) for name in self.model_fields_set - set(names)}
        if self.sbatch:
            kept["sbatch"] = {k: v for k, v in self.sbatch.items() if k not in (*GPU_OPTIONS, *MEMORY_OPTIONS)}
            if not kept["sbatch"]:  # an empty one would remove the options of the layers below
                del kept["sbatch"]
        return Resources(**kept)

    def contradiction(self) -> str | None:
        """Why these cannot be requested together, in one line; None if they can."""
        each = {"gpus": (self.nodes or 1) * (self.gpus or 0), "gpus-per-node": self.gpus or 0}
        each["gpus-per-task"] = (self.gpus or 0) // self.tasks_per_node
        for option, expected in each.items():
            if option in self.sbatch and count_gpus(f"gpu:{self.sbatch[option]}") != expected:
                said = f"sbatch.{option} {self.sbatch[option]} does not fit gpus {self.gpus}"
                return f"{said} on each of {self.nodes or 1} nodes with {self.tasks_per_node} tasks; correct one"
        if self.hours is not None and (self.signal_seconds or 0) >= self.hours * 3600:
            return f"signal_seconds {self.signal_seconds} is not below hours {format_hours(self.hours)}; lower it"
        return None


def parse_hours(limit: str) -> float | None:
    """The hours of a time limit such as `30:00`, `12:00:00` or `2-00:00:00`; None for `infinite`."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", limit):
        return None
    days, dash, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:  # days-hours[:minutes[:seconds]]
        parts += [0] * (3 - len(parts))
    elif len(parts) == 1:  # minutes
        parts = [0, *parts, 0]
    elif len(parts) == 2:  # minutes:seconds
        parts = [0, *parts]
    return 24 * int(days or 0) + parts[0] + parts[1] / 60 + parts[2] / 3600


def in_minutes(hours: float) -> int:
    """Hours in whole minutes, rounded up, as Slurm counts a time limit."""
    return math.ceil(round(hours * 60, 3))


def format_hours(hours: float) -> str:
    """Hours as `h:mm`, rounded up to a minute."""
    return f"{in_minutes(hours) // 60}:{in_minutes(hours) % 60:02d}"


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
            default = default.without(SIZE)
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
    estimate: bool = Field(default=False, description="computed from a measurement of something smaller")


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
    weights: PathText | None = Field(
        default=None,
        description="a checkpoint, a detector or its folder, `zoo:NAME` or `hf-hub:ORG/NAME[@REVISION][:FILE]`",
    )
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
