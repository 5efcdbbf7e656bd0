"""What a job asks a cluster for, in layers: the site's defaults and stages, the experiment's, then the row's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """A section whose keys are all known and whose values are of the named type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _spelled(value: Any) -> Any:
    """An environment value as the text a shell would hold."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


EnvironmentValue = Annotated[str, BeforeValidator(_spelled)]


def _bare(options: dict[str, Any]) -> dict[str, Any]:
    for key in options:
        if key.startswith("-") or "_" in key:
            raise ValueError(f"write sbatch's option {key!r} as {key.lstrip('-').replace('_', '-')!r}")
    return options


class Resources(Strict):
    """What one job of a stage gets. A key that is not given is the next layer's.

    Attributes:
        nodes: how many machines.
        gpus: GPUs a node, one process each; 0: one process on the CPU.
        tasks: processes a node, where it is not one a GPU.
        cpus: CPU cores a process.
        memory_gb: memory a node.
        hours: the time limit; a job that reaches it saves, is requeued and goes on.
        signal_seconds: how long before the limit it is told to save.
        partition, account, qos, constraint: sbatch's options of these names.
        gres: asks for the GPUs by gres (such as `gpu:a100:8`) and not by `--gpus-per-node`.
        sbatch: any other option of sbatch by its long name, `true` for one without a value.
        setup: lines of shell before the job (`module load cuda`); those of all layers, one after the other.
        container: words before `python` (`apptainer exec --nv /images/torch.sif`).
        python: the interpreter, where it is not the one that submits (in a container: `python3`).
        environment: variables of the job.
        stage_to: a folder on the node's own disk that the data root is copied to first, once a node; `$VARIABLES` are
            the job's.
    """

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
    sbatch: Annotated[dict[str, str | int | float | bool], AfterValidator(_bare)] = Field(default_factory=dict)
    setup: list[str] = Field(default_factory=list)
    container: str | None = None
    python: str | None = None
    environment: dict[str, EnvironmentValue] = Field(default_factory=dict)
    stage_to: str | None = None

    @property
    def tasks_per_node(self) -> int:
        """Processes a node: one a GPU unless told."""
        return self.tasks or self.gpus or 1

    def over(self, lower: Resources) -> Resources:
        """These, and where they say nothing what `lower` says; options and variables key by key, set-up lines added."""
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


SINGLE = ("convert", "choose", "table")
"""Stages whose tools are one small process, whatever is asked for the others."""


class Stages(Strict):
    """Resources of every stage.

    Attributes:
        default: of the stages that train or evaluate; where the others run (partition, set-up lines, container …), not
            how large they are.
        pretrain, evaluate, finetune, convert, choose, table: of the jobs of that kind, over the default.
        search: of the points of an lr search, over `finetune`.
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
    def _small_ones_stay_small(self) -> Stages:
        for kind in SINGLE:
            own: Resources = getattr(self, kind)
            if (own.nodes or 1) * own.tasks_per_node > 1:
                raise ValueError(f"{kind} is one process: give it one node, one task and one GPU at most")
        return self

    def of(self, kind: str, lower: Resources) -> Resources:
        """What a job of that kind gets from this layer, over `lower`."""
        default = self.default
        if kind in SINGLE:
            default = default.model_copy(update=dict.fromkeys(SIZE))
        found = default.over(lower)
        if kind == "search":
            found = self.finetune.over(found)
        own: Resources = getattr(self, kind)
        return own.over(found)


SIZE = ("nodes", "gpus", "tasks", "cpus", "memory_gb", "hours", "signal_seconds", "gres", "stage_to")
"""What a default says about training alone."""
SMALL = Resources(nodes=1, gpus=0, cpus=2, memory_gb=8, hours=1, signal_seconds=120)
BUILT_IN = Stages(
    default=Resources(nodes=1, gpus=1, cpus=4, memory_gb=32, hours=24, signal_seconds=120),
    convert=SMALL,
    choose=SMALL,
    table=SMALL,
)
"""What holds where neither the site nor the experiment says anything: modest, and the same everywhere."""


def resources_for(kind: str, layers: Iterable[Stages]) -> Resources:
    """What a job of that kind gets.

    Args:
        kind: the stage.
        layers: the weakest first (the site's, the experiment's, the row's), over the built-in ones.
    """
    found = Resources()
    for layer in (BUILT_IN, *layers):
        found = layer.of(kind, found)
    return found
