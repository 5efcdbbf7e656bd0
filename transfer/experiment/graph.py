"""The graph of jobs: what they are, what they need, what they write, and its file `graph.json`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from common.errors import UserError, nearest
from common.files import read_json, write_json
from transfer.experiment.commands import Command

FORMAT = "graph/1"
FILE = "graph.json"
Kind = Literal["pretrain", "convert", "evaluate", "search", "choose", "finetune", "table"]


@dataclass(frozen=True)
class Job:
    """One unit of work.

    Attributes:
        name: what it is, such as `finetune.simsiam.voc07.s1`.
        kind: its stage.
        fingerprint: SHA-256 over all that decides its result.
        needs: the jobs whose output it reads.
        commands: what is run, one after the other.
        outputs: the files it leaves, relative to the run folder; it is done only while they exist.
        row: the row it belongs to; None for the table.
        task: the task it fine-tunes on; of an evaluation the column it fills, such as `linear_200ep`.
        seed: its seed.
        trial: its trial's number, from 1.
        total: how far it has to go, in the unit of `counter`; None when only the tool knows.
        counter: the key of `metrics.json` that counts towards `total`.
        data: the data root that its commands name.
        recipe: whose seconds a step hold for it: the task's own name or the config's stem; None where the settings are
            not the recipe's (an overlay, another batch).
        role: `lr_search` for a point of a search, which is in no cell of a table.
    """

    name: str
    kind: Kind
    fingerprint: str
    needs: tuple[str, ...]
    commands: tuple[Command, ...]
    outputs: tuple[str, ...]
    row: str | None = None
    task: str | None = None
    seed: int | None = None
    trial: int | None = None
    total: float | None = None
    counter: str = "iteration"
    data: str | None = None
    recipe: str | None = None
    role: str | None = None

    @property
    def asked_by(self) -> str | None:
        """The key of the experiment's row that asks for it, which may be part of another `row`; None for the table."""
        return self.name.split(".")[1] if "." in self.name else None

    @property
    def dir(self) -> str:
        """Its folder, relative to the run folder."""
        return f"jobs/{self.name}-{self.fingerprint[:8]}"

    @property
    def after_any(self) -> bool:
        """Whether it runs once its inputs have ended, however they ended, not only when all are done."""
        return self.kind in ("choose", "table")


@dataclass(frozen=True)
class Graph:
    """All jobs of an experiment, every job after those it needs.

    Attributes:
        experiment: the experiment's name.
        source: the experiment file's text.
        sets: the `--set` words.
        rows: `{"key", "label", "expected"}` of every row, in order.
        tasks: `{"key", "trials"}` of every task, in order.
        jobs: by name.
    """

    experiment: str
    source: str
    sets: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    tasks: tuple[dict[str, Any], ...]
    jobs: dict[str, Job] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Job]:
        return iter(self.jobs.values())

    def __getitem__(self, name: str) -> Job:
        """The job of that name.

        Raises:
            UserError: there is none; lists the nearest.
        """
        if name not in self.jobs:
            raise UserError(f"there is no job {name!r}; {nearest(name, self.jobs)}")
        return self.jobs[name]

    def users(self, name: str) -> list[Job]:
        """The jobs that need `name` directly."""
        return [job for job in self if name in job.needs]

    def downstream(self, names: Iterable[str]) -> set[str]:
        """The named jobs and all that need them, directly or not."""
        reached = set(names)
        for job in self:  # in dependency order: one pass is enough
            if reached.intersection(job.needs):
                reached.add(job.name)
        return reached

    def heights(self) -> dict[str, int]:
        """How many stages follow each job: what a long chain waits for is started first."""
        height: dict[str, int] = {job.name: 0 for job in self}
        for job in reversed(list(self)):
            for need in job.needs:
                height[need] = max(height[need], height[job.name] + 1)
        return height

    def write(self, run_dir: Path) -> None:
        """Write `graph.json` into the run folder."""
        head = {"format": FORMAT, "experiment": self.experiment, "source": self.source, "sets": self.sets}
        jobs = [{**asdict(job), "dir": job.dir} for job in self]
        write_json(run_dir / FILE, {**head, "rows": self.rows, "tasks": self.tasks, "jobs": jobs})


def read_graph(run_dir: Path) -> Graph:
    """The graph last submitted to a run folder.

    Raises:
        UserError: nothing was submitted there, or the file is of another format.
    """
    path = run_dir / FILE
    if not path.exists():
        raise UserError(f"nothing was submitted to {run_dir} yet; `submit` does that")
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is not of format {FORMAT}; it was written by another version: choose another run_dir")
    jobs = [_job(dict(entry)) for entry in content["jobs"]]
    return Graph(
        experiment=content["experiment"],
        source=content["source"],
        sets=tuple(content["sets"]),
        rows=tuple(content["rows"]),
        tasks=tuple(content["tasks"]),
        jobs={job.name: job for job in jobs},
    )


def _job(entry: dict[str, Any]) -> Job:
    entry.pop("dir")
    entry["needs"], entry["outputs"] = tuple(entry["needs"]), tuple(entry["outputs"])
    entry["commands"] = tuple(tuple(words) for words in entry["commands"])
    return Job(**entry)
