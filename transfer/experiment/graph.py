"""The graph of jobs: what they are, what they need and what they write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from ssl_transfer.errors import UserError, nearest, redact_urls
from ssl_transfer.formats.graph import GRAPH_FILE, GraphFile, GraphJob, GraphRow, GraphTask, JobKind
from transfer.experiment.commands import Arguments, Command, Tools

STORED = tuple(name for name in GraphJob.model_fields if name not in ("commands", "dir"))
"""The fields of a job that its entry in `graph.json` has, too."""


@dataclass(frozen=True)
class Job:
    """One unit of work.

    The fields up to `role` are those of `GraphJob`, which describes them. A job that was read from `graph.json` has
    none of the others: it is shown, not started.

    Attributes:
        tool: the tool that it runs.
        args: the arguments of each of its runs of the tool, in order.
        row_key: the key of the experiment's row that requests it; None for the table.
    """

    name: str
    kind: JobKind
    fingerprint: str
    needs: tuple[str, ...]
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
    tool: str = field(default="", compare=False)
    args: tuple[Arguments, ...] = field(default=(), compare=False)
    row_key: str | None = field(default=None, compare=False)

    @property
    def dir(self) -> str:
        return job_dir(self.name, self.fingerprint)

    def commands(self, tools: Tools, *, num_gpus: int = 0, data: str | None = None) -> list[Command]:
        return [tools.command(self.tool, one, num_gpus=num_gpus, data=data) for one in self.args]

    @property
    def labels(self) -> tuple[str, ...]:
        """What a user may call it: its name or how that begins, its stage, its row, its task (or evaluation)."""
        parts = self.name.split(".")
        begins = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
        own = (self.kind, self.row, self.task, *parts[1:3], *begins)
        return tuple(dict.fromkeys(label for label in own if label))

    @property
    def after_any(self) -> bool:
        """Whether it also runs if some of its inputs failed."""
        return self.kind in ("choose", "table")


def job_dir(name: str, fingerprint: str) -> str:
    return f"jobs/{name}-{fingerprint[:8]}"


def select_jobs(jobs: Iterable[Job], words: Sequence[str]) -> list[Job]:
    """The jobs that any of the words names, in their order; all of them without a word.

    Args:
        jobs: to choose from.
        words: labels (`Job.labels`), or patterns of labels: `*`, `?`, `[…]`.

    Raises:
        UserError: a word names none; lists the nearest.
    """
    jobs, found = list(jobs), set()
    for word in words:
        named = [job.name for job in jobs if any(fnmatchcase(label, word) for label in job.labels)]
        if not named:
            advice = nearest(word, (label for job in jobs for label in job.labels))
            raise UserError(f"no job, row, task or stage is called {word!r}; {advice}")
        found.update(named)
    return [job for job in jobs if not words or job.name in found]


@dataclass(frozen=True)
class Graph:
    """All jobs of an experiment, every job after those it needs. The fields are those of `GraphFile`."""

    experiment: str
    source: str
    sets: Sequence[str]
    rows: Sequence[GraphRow]
    tasks: Sequence[GraphTask]
    jobs: Mapping[str, Job]

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
        return self._users.get(name, [])

    @cached_property
    def _users(self) -> dict[str, list[Job]]:
        found: dict[str, list[Job]] = {}
        for job in self:
            for need in dict.fromkeys(job.needs):
                found.setdefault(need, []).append(job)
        return found

    def downstream(self, names: Iterable[str]) -> set[str]:
        """The named jobs and all that need them, directly or not."""
        reached = set(names)
        for job in self:  # in dependency order: one pass is enough
            if reached.intersection(job.needs):
                reached.add(job.name)
        return reached

    def heights(self) -> dict[str, int]:
        """How many stages follow each job: the jobs with the longest chain behind them start first."""
        height: dict[str, int] = {job.name: 0 for job in self}
        for job in reversed(list(self)):
            for need in job.needs:
                height[need] = max(height[need], height[job.name] + 1)
        return height

    def write(self, run_dir: Path, tools: Tools) -> None:
        jobs = []
        for job in self:
            commands = tuple([redact_urls(word) for word in words] for words in job.commands(tools))
            jobs.append(GraphJob(**{name: getattr(job, name) for name in STORED}, commands=commands, dir=job.dir))
        values = {name: getattr(self, name) for name in ("experiment", "source", "sets", "rows", "tasks")}
        GraphFile(**values, jobs=tuple(jobs)).write(run_dir / GRAPH_FILE)


def read_graph(run_dir: Path) -> Graph:
    """The graph last submitted to a run folder.

    Raises:
        UserError: nothing was submitted there, or the file is of another format.
    """
    path = run_dir / GRAPH_FILE
    if not path.exists():
        raise UserError(f"nothing was submitted to {run_dir} yet; `submit` does that")
    file = GraphFile.read(path, "choose another run_dir")
    before: set[str] = set()
    for entry in file.jobs:
        if unknown := set(entry.needs) - before:
            raise UserError(f"{path}: job {entry.name} needs {min(unknown)}, which is not before it; submit again")
        before.add(entry.name)
    jobs = [Job(**{name: getattr(entry, name) for name in STORED}) for entry in file.jobs]
    return Graph(file.experiment, file.source, file.sets, file.rows, file.tasks, {job.name: job for job in jobs})
