"""`graph.json` (`graph/1`): the jobs of an experiment, as they were last submitted to a run folder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ssl_transfer.formats import FileFormat

JobKind = Literal["pretrain", "convert", "evaluate", "search", "choose", "finetune", "table"]
GRAPH_FILE = "graph.json"


class GraphRow(FileFormat):
    """A row of the experiment's table."""

    key: str = Field(description="the row's key in the experiment file")
    label: str = Field(description="the row's heading in the table")
    expected: str | None = Field(default=None, description="the row of configs/expected/ that it is compared with")


class GraphTask(FileFormat):
    """A column of the experiment's table."""

    key: str = Field(description="the task's key in the experiment file")
    trials: int = Field(description="the number of trials of each row")


class GraphJob(FileFormat):
    """One job of the graph."""

    name: str = Field(description="unique name, such as `finetune.simsiam.voc07.s1`")
    kind: JobKind = Field(description="the job's stage")
    fingerprint: str = Field(description="SHA-256 of everything that decides the job's result")
    needs: tuple[str, ...] = Field(default=(), strict=False, description="the jobs whose outputs it reads")
    commands: tuple[list[str], ...] = Field(default=(), strict=False, description="its command lines, in order")
    outputs: tuple[str, ...] = Field(
        default=(), strict=False, description="the files it writes, relative to the run folder"
    )
    row: str | None = Field(default=None, description="its row of the table; null for the table itself")
    task: str | None = Field(default=None, description="its task, or the column that an evaluation fills")
    seed: int | None = Field(default=None, description="its random seed")
    trial: int | None = Field(default=None, description="the trial's number, from 1")
    total: float | None = Field(default=None, description="its length in the unit of `counter`; null if unknown")
    counter: str = Field(default="iteration", description="the key of metrics.json that counts up to `total`")
    data: str | None = Field(default=None, description="the data root that its commands name")
    recipe: str | None = Field(default=None, description="the recipe whose measured seconds per step apply to it")
    role: str | None = Field(default=None, description="`lr_search` for a candidate of a learning-rate search")
    dir: str = Field(description="its folder, relative to the run folder")


class GraphFile(FileFormat):
    """The whole file."""

    format: Literal["graph/1"] = Field(default="graph/1", description="name and version of the format")
    experiment: str = Field(description="the experiment's name")
    source: str = Field(description="the text of the experiment file")
    sets: tuple[str, ...] = Field(default=(), strict=False, description="the `--set` words of the submit")
    rows: tuple[GraphRow, ...] = Field(strict=False, description="the table's rows, in order")
    tasks: tuple[GraphTask, ...] = Field(strict=False, description="the table's columns, in order")
    jobs: tuple[GraphJob, ...] = Field(strict=False, description="every job after those it needs")
