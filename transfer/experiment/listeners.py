"""What a user sees while jobs run: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.live import Live

from common.console import clock
from transfer.experiment.executors import Work
from transfer.experiment.graph import Job
from transfer.experiment.progress import progress
from transfer.experiment.store import State
from transfer.experiment.views import STYLES, status_table


class Lines:
    """A line when something happens, and every so often one about what runs.

    Args:
        console: where to write.
        every: seconds between lines about running jobs.
    """

    def __init__(self, console: Console, every: float = 30.0) -> None:
        self.console, self.every = console, every
        self.total = self.count = 0
        self.last = time.monotonic()
        self.work: Work | None = None

    def begin(self, work: Work, side_by_side: int) -> None:
        """Say how much there is to do."""
        self.work, self.total = work, len(work.to_run())
        name, where = work.graph.experiment, work.store.run_dir
        if self.total:
            how = f"{side_by_side} at a time" if side_by_side else "through the queue"
            self.say(f"{name}: {self.total} jobs to run, {how}, into {where}")
        else:
            self.say(f"{name}: nothing to run, every result is in {where}")

    def filed(self, jobs: Sequence[Job], ids: Sequence[str], after: str) -> None:
        """Say as what, and what they wait for."""
        more = f" … {jobs[-1].name} ({len(jobs)} jobs)" if len(jobs) > 1 else ""
        shown = ids[0] if len(ids) == 1 else f"{ids[0].partition('_')[0]}_[0-{len(ids) - 1}]"
        self.say(f"filed   {jobs[0].name}{more} as {shown}" + (f", {after}" if after else ""))

    def started(self, job: Job, state: State) -> None:
        """Say so."""
        again = f" (attempt {state.attempts})" if state.attempts > 1 else ""
        self.say(f"start   {job.name}{again}")

    def waiting(self, job: Job, state: State | None) -> None:
        """Say who is in the way."""
        who = f" (process {state.process.pid} on {state.process.host})" if state and state.process else ""
        self.say(f"wait    {job.name}: a process of an earlier submit still works on it{who}")

    def ended(self, job: Job, state: State) -> None:
        """Say how, how long it took and what came of it."""
        assert self.work is not None
        self.count += 1
        note = progress(job, self.work.store, state).note
        tail = f" · {note}" if note else ""
        word = f"{state.status:<7}"
        self.say(f"{word} {job.name} in {clock(state.seconds or 0)}{tail}  [{self.count}/{self.total}]", state.status)
        if state.status == "failed":
            self.say(f"        its log: {self.work.store.log(job)}")

    def blocked(self, job: Job, by: str) -> None:
        """Name the job and what it waited for."""
        self.count += 1
        self.say(f"blocked {job.name}: needs {by}, which has no result  [{self.count}/{self.total}]", "blocked")

    def tick(self, running: Mapping[str, State]) -> None:
        """Say where the running jobs are, when it is time to."""
        now = time.monotonic()
        if self.work is None or now - self.last < self.every:
            return
        self.last = now
        for name, state in running.items():
            where = progress(self.work.graph[name], self.work.store, state)
            done = "running" if where.fraction is None else f"{where.fraction:.0%}"
            eta = "" if where.eta is None else f" · ETA {clock(where.eta)}"
            note = f" · {where.note}" if where.note else ""
            self.say(f"        {name}: {done} after {clock(state.seconds or 0)}{eta}{note}")

    def end(self) -> None:
        """Nothing to add."""

    def say(self, line: str, word: str = "") -> None:
        """One line, never wrapped."""
        self.console.print(line, style=STYLES.get(word, ""), soft_wrap=True, markup=False, highlight=False)


class LiveTable(Lines):
    """The table of all jobs, renewed in place, with the lines of what happened above it."""

    def __init__(self, console: Console, every: float = 0.5) -> None:
        super().__init__(console, every)
        self.live = Live(console=console, auto_refresh=False, transient=True)

    def begin(self, work: Work, side_by_side: int) -> None:
        """Open the table."""
        super().begin(work, side_by_side)
        self.live.start()

    def tick(self, running: Mapping[str, State]) -> None:
        """Renew the table, when it is time to."""
        now = time.monotonic()
        if self.work is not None and now - self.last >= self.every:
            self.last = now
            self.live.update(status_table(self.work.graph, self.work.store, self.console.height), refresh=True)

    def end(self) -> None:
        """Close the table."""
        self.live.stop()


def listener_for(console: Console) -> Lines:
    """A live table on a terminal, plain lines elsewhere."""
    return LiveTable(console) if console.is_terminal else Lines(console)
