"""What every process of a Slurm job runs: the job's commands as children; the first process keeps `job.json`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.errors import EXIT_REQUEUE, UserError
from common.files import write_json
from transfer.experiment import processes
from transfer.experiment.attempt import (
    Attempt,
    Means,
    begin,
    deaf_to_others,
    last_error_line,
    signal_name,
    write_banner,
)
from transfer.experiment.filing import read_filed
from transfer.experiment.graph import Job, read_graph
from transfer.experiment.slurm import commands, place, staging
from transfer.experiment.slurm.place import Place
from transfer.experiment.store import ENDED_WELL, State, Store, ended

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
LEFTOVERS = 120.0
"""Seconds that processes of the job's former start may take to die."""


@dataclass
class Task:
    """The callable that submitit pickles and runs in every process of the job.

    Attributes:
        run_dir: the run folder.
        job: the job, its commands as they run on the cluster.
        environment: variables of its commands.
        continues: how often a command that exits with 75 by itself is asked again.
        requeues: how often the job may be put back into the queue.
        grace: seconds a command has to save when time is up.
        stage_to: where the data root is copied to first.
    """

    run_dir: str
    job: Job
    environment: Mapping[str, str]
    continues: int
    requeues: int
    grace: float
    stage_to: str | None = None
    _leader: Leader | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_leader": None}

    @property
    def store(self) -> Store:
        """The run folder."""
        return Store(Path(self.run_dir))

    def __call__(self) -> str:
        """Run the job to its end; exits with 1 where it has none yet."""
        here = place.from_environment()
        if here.rank:
            return Follower(self, here).run()
        self._leader = Leader(self, here)
        return self._leader.run()

    def checkpoint(self) -> Any:
        """submitit's word that time is up (called in the first process, in its signal handler).

        Returns:
            What is to run when the job is back from the queue; None when it has ended, or was put back too often.
        """
        from submitit.helpers import DelayedSubmission

        assert self._leader is not None, "submitit asks the first process alone"
        return DelayedSubmission(self) if self._leader.give_way() else None

    def placed(self) -> Job:
        """The job on this node: with the data root's copy, if it is to be copied."""
        staged = staging.stage(self.job.data, self.stage_to) if self.stage_to and self.job.data else None
        return commands.here(self.job, staged)


class Leader:
    """The first process: the one attempt, as on any machine, and what Slurm's signals do to it."""

    def __init__(self, task: Task, here: Place) -> None:
        self.task, self.here, self.store = task, here, task.store
        self.attempt: Attempt | None = None

    def run(self) -> str:
        """Run to the end; the job's state in one word."""
        self._claim()
        signal.signal(signal.SIGTERM, self._on_term)
        try:
            job = self.task.placed()
            with _signals_held_back():
                self.attempt = self._start(job)
            while (state := self._poll()) is None:
                time.sleep(0.1)
        except UserError as error:
            self._fail(str(error))
            raise
        if state.status not in ENDED_WELL:
            sys.exit(f"{self.task.job.name}: {state.status}: {state.error}")
        return state.status

    def _claim(self) -> None:
        """The job's folder is this job's of the queue, or another's: then it is none of ours."""
        folder = self.store.folder(self.task.job)
        deadline = time.monotonic() + 60
        while (filed := read_filed(folder)) is None or filed.id != self.here.id:
            if time.monotonic() > deadline:
                sys.exit(f"{folder} was filed as {filed.id if filed else 'nothing'}, not {self.here.id}")
            time.sleep(0.2)  # submit writes it right after sbatch has answered
        state = self.store.read(self.task.job)
        if state is not None and state.job_id == self.here.id and state.status in ENDED_WELL:
            sys.exit(0)  # somebody put a finished job back
        if self.here.restarts > self.task.requeues:
            self._fail(f"put back into the queue {self.task.requeues} times without getting done")
            sys.exit(1)

    def _start(self, job: Job) -> Attempt:
        task = self.task
        means = Means("slurm", task.environment, task.continues, self.here.id)
        attempt = Attempt.start(job, read_graph(self.store.run_dir), self.store, means, LEFTOVERS)
        if attempt is None:
            raise UserError(f"another process has been working on {task.job.name} for {LEFTOVERS:.0f} s; retry later")
        return attempt

    def _poll(self) -> State | None:
        assert self.attempt is not None
        with _signals_held_back():  # they would find the attempt halfway between two states
            return self.attempt.poll()

    def _on_term(self, _number: int, _frame: object) -> None:
        """Preempted, put back by hand, or cancelled: Slurm has told the command as well, and knows what comes next."""
        if self.attempt is not None and self.attempt.state.ended is None:
            self.attempt.stop("SIGTERM (preempted, or put back by hand)", "requeued", tell=False)

    def give_way(self) -> bool:
        """Save and stop; whether the job is to be put back into the queue."""
        if self.attempt is None:
            return self.here.restarts < self.task.requeues
        if self.attempt.state.ended is not None:
            return False
        self.attempt.stop("its time was up", "requeued")
        deadline = time.monotonic() + self.task.grace
        while (state := self.attempt.poll()) is None:
            if time.monotonic() > deadline:
                self.attempt.kill()
            time.sleep(0.05)
        if state.status != "requeued":
            return False  # it ended by itself meanwhile, or was cancelled
        if self.here.restarts >= self.task.requeues:
            self.store.write(
                self.task.job,
                replace(
                    state,
                    status="failed",
                    error=f"its time was up and it was put back {self.here.restarts} times already; "
                    "give it more hours or slurm.requeues, then retry",
                ),
            )
            return False
        self.store.write(self.task.job, replace(state, kills=0))
        return True

    def _fail(self, why: str) -> None:
        graph = read_graph(self.store.run_dir)
        state = begin(self.task.job, graph, self.store, "slurm", self.here.id)
        self.store.write(self.task.job, ended(state, "failed", error=why[:300]))


class Follower:
    """Any other process: runs the same commands, and leaves word where one of them breaks."""

    def __init__(self, task: Task, here: Place) -> None:
        self.task, self.here = task, here
        self.folder = task.store.folder(task.job)
        self.log = self.folder / f"stdout.rank{here.rank}.log"
        self.stopped = False
        self.child: subprocess.Popen[bytes] | None = None

    def run(self) -> str:
        """Run to the end, or until told to stop: then the first process knows what comes next."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        try:
            for command in self.task.placed().commands:
                code = self._command(command)
                if code:
                    return "stopped"
        except UserError as error:
            leave_word(self.folder, self.here, str(error), 1)
            raise
        return "done"

    def _command(self, command: tuple[str, ...]) -> int:
        continues = self.task.continues
        while True:
            code = self._once(command)
            if code == 0 or self.stopped:
                return code
            if code != EXIT_REQUEUE or not continues:
                break
            continues -= 1
        line = last_error_line(self.log)
        if code < 0:
            line = f"killed by {signal_name(-code)}" + (f" after: {line}" if line else "")
        leave_word(self.folder, self.here, line or f"exited with {code} and said nothing", code)
        sys.exit(1)

    def _once(self, command: tuple[str, ...]) -> int:
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            write_banner(log, self.here.restarts + 1, command)
            with _signals_held_back():
                self.child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "PYTHONUNBUFFERED": "1", **self.task.environment},
                    preexec_fn=deaf_to_others,
                )
        return self.child.wait()

    def _on_signal(self, number: int, _frame: object) -> None:
        self.stopped = True
        if number == signal.SIGUSR2 and self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)


def leave_word(folder: Path, here: Place, error: str, code: int) -> None:
    """Write down why a process that is not the first one broke."""
    host = processes.this().host
    content = {"run": here.run, "rank": here.rank, "host": host, "error": error[:300], "exit_code": code}
    write_json(folder / f"error.rank{here.rank}.json", content)


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
