"""What every way of running jobs has in common: local, debug, slurm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from transfer.experiment.decide import Decision
from transfer.experiment.graph import Graph, Job
from transfer.experiment.spec import Experiment
from transfer.experiment.store import State, Store


class Listener(Protocol):
    """Is told what happens, to show it."""

    def begin(self, work: Work, side_by_side: int) -> None:
        """The work is about to start, at most so many jobs at a time (0: as a queue likes)."""

    def filed(self, jobs: Sequence[Job], ids: Sequence[str], after: str) -> None:
        """Jobs were put into a queue under these ids, to start after what `after` says."""

    def started(self, job: Job, state: State) -> None:
        """A job was started."""

    def waiting(self, job: Job, state: State | None) -> None:
        """A job cannot start: a process of an earlier submit still works on it."""

    def ended(self, job: Job, state: State) -> None:
        """A job has ended, well or not."""

    def blocked(self, job: Job, by: str) -> None:
        """A job will not run, because job `by` did not end well."""

    def tick(self, running: Mapping[str, State]) -> None:
        """Some time has passed."""

    def end(self) -> None:
        """Nothing more will come."""


@dataclass(frozen=True)
class Work:
    """What an executor is given.

    Attributes:
        experiment: the settings.
        graph: all jobs.
        decisions: what to do with each; jobs left out are left alone.
        store: where their state lies.
    """

    experiment: Experiment
    graph: Graph
    decisions: Mapping[str, Decision]
    store: Store

    def to_run(self) -> list[Job]:
        """The jobs to run: the longest chains first, else in the graph's order."""
        height = self.graph.heights()
        jobs = [one.job for one in self.decisions.values() if one.action == "run"]
        return sorted(jobs, key=lambda job: -height[job.name])


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        ran: the final state of every job that was run.
        blocked: jobs that were not run, and the job each waited for in vain.
        filed: the queue's ids of the jobs that were filed there.
        held: how many jobs were in the queue already.
        stopped: the signal that ended the work before its time; None when it ran to its end.
    """

    ran: dict[str, State] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    filed: dict[str, str] = field(default_factory=dict)
    held: int = 0
    stopped: int | None = None

    @property
    def bad(self) -> list[str]:
        """The jobs that have no result: failed, cancelled or blocked."""
        ended_badly = [name for name, state in self.ran.items() if state.status in ("failed", "cancelled")]
        return ended_badly + list(self.blocked)


class Executor(Protocol):
    """A way of running jobs.

    `run` returns when its part is done: local and debug when every job has ended, a queue when every job is filed.
    """

    name: str

    def refusal(self, experiment: Experiment, decisions: Mapping[str, Decision]) -> str | None:
        """Why it cannot do this, in one line, before anything is written; None when it can."""

    def run(self, work: Work, listener: Listener) -> Outcome:
        """Run what `work.decisions` says."""


def in_queue(decisions: Mapping[str, Decision]) -> str | None:
    """For what runs jobs itself: why not now; None unless a cluster's queue holds some of them."""
    held = [name for name, one in decisions.items() if one.action == "queued"]
    if not held:
        return None
    advice = "wait for them, `cancel` them, or give --cluster slurm"
    return f"{len(held)} jobs of this run folder are in Slurm's queue, such as {held[0]}; {advice}"


class Agenda:
    """Which jobs may start: those whose inputs are there; which never will: those whose inputs failed.

    Args:
        work: what is to be run.
        outcome: is kept up to date with what is blocked.
    """

    def __init__(self, work: Work, outcome: Outcome) -> None:
        self.waiting = work.to_run()
        self.outcome = outcome
        self.unsettled = {job.name for job in self.waiting}

    def settle(self, job: Job, state: State) -> None:
        """The job has ended in `state`."""
        self.outcome.ran[job.name] = state
        self.unsettled.discard(job.name)

    def newly_blocked(self) -> list[Job]:
        """Take out the jobs that can never run, and say by `outcome.blocked` because of which."""
        found: list[Job] = []
        while True:
            bad = set(self.outcome.bad)
            hit = [(job, need) for job in self.waiting if not job.after_any for need in job.needs if need in bad]
            if not hit:
                return found
            job, need = hit[0]
            self.outcome.blocked[job.name] = self.outcome.blocked.get(need, need)
            self.waiting.remove(job)
            self.unsettled.discard(job.name)
            found.append(job)

    def ready(self) -> list[Job]:
        """The jobs whose every input has ended (well, but for the table), best first."""
        return [job for job in self.waiting if not self.unsettled.intersection(job.needs)]

    def take(self, job: Job) -> None:
        """The job is being started."""
        self.waiting.remove(job)
