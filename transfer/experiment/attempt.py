"""One attempt at a job: its processes one after the other, its log, its `job.json`, from the first line to the last."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from common.errors import EXIT_REQUEUE
from transfer.experiment import processes
from transfer.experiment.graph import Graph, Job
from transfer.experiment.locks import FileLock
from transfer.experiment.store import State, Store, ended, now

_ERROR = re.compile(r"^(error: |[\w.]+: error: |[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b)")


@dataclass(frozen=True)
class Means:
    """What an attempt runs with.

    Attributes:
        executor: the executor's name, for `job.json`.
        environment: variables laid over this process's own.
        continues: how often a command that exits with 75 (stopped after a checkpoint) is asked again.
        job_id: the queue's id of the job that this process is; None where there is no queue.
    """

    executor: str
    environment: Mapping[str, str]
    continues: int
    job_id: str | None = None


class Attempt:
    """Runs a job's commands as children of this process: `Attempt.start`, then `poll` until it gives a state.

    The children hold the job's lock: while one of them lives, nobody else starts the job, and whoever looks knows that
    it runs, even when this process was killed.
    """

    def __init__(self, job: Job, store: Store, means: Means, state: State, lock: FileLock) -> None:
        self.job, self.store, self.means, self.state = job, store, means, state
        self._lock = lock
        self._left = list(job.commands)
        self._continues = means.continues
        self._stopped_by: str | None = None
        self._stopped_as = "cancelled"
        self._child = self._launch()

    @classmethod
    def start(cls, job: Job, graph: Graph, store: Store, means: Means, patience: float = 0.1) -> Attempt | None:
        """Start the job's first command; None when another process works on the job, for all those seconds."""
        lock = store.lock(job)
        if not lock.acquire(patience):
            return None
        try:
            return cls(job, store, means, begin(job, graph, store, means.executor, means.job_id), lock)
        except BaseException:
            lock.release()
            raise

    def poll(self) -> State | None:
        """The job's final state once it has ended, else None; starts the next command when it is time to."""
        code = self._child.poll()
        if code is None:
            return None
        if code == 0:
            del self._left[0]
            if self._left and not self._stopped_by:
                self._child = self._launch()
                return None
            return self._finish(self._outcome())
        if self.store.cancel_requested(self.job, self.state):
            return self._finish(ended(self.state, "cancelled", exit_code=code, error=self._stopped_by or "cancelled"))
        if self._stopped_by:
            return self._finish(ended(self.state, self._stopped_as, exit_code=code, error=self._stopped_by))
        if code == EXIT_REQUEUE and self._continues:
            self._continues -= 1
            self._child = self._launch()
            return None
        return self._finish(ended(self.state, "failed", exit_code=code, error=self._reason(code)))

    def stop(self, why: str, status: str = "cancelled", tell: bool = True) -> None:
        """Ask the running command to checkpoint and leave; the attempt will end as `status`.

        Args:
            why: the reason, for `job.json`.
            status: what the attempt ends as.
            tell: send SIGTERM; False where the command has been told already.
        """
        self._stopped_by, self._stopped_as = why, status
        if tell and self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the running command and all it started, now."""
        if self._child.poll() is None:
            processes.kill_tree(self._child.pid)

    def _launch(self) -> subprocess.Popen[bytes]:
        command = self._left[0]
        self.store.write(self.job, self.state)  # before the process: one that nobody wrote down would be lost
        with open(self.store.log(self.job), "ab") as log:
            write_banner(log, self.state.attempts, command)
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self.means.environment},
                pass_fds=(self._lock.fileno(),),
                preexec_fn=deaf_to_others,
            )
        self.state = replace(self.state, process=processes.this(child.pid))
        self.store.write(self.job, self.state)
        return child

    def _outcome(self) -> State:
        missing = self.store.missing(self.job)
        if self._left:
            return ended(self.state, self._stopped_as, exit_code=0, error=self._stopped_by)
        if missing:
            return ended(self.state, "failed", exit_code=0, error=f"exited with 0 but wrote no {missing[0]}")
        return ended(self.state, self.store.result_status(self.job), exit_code=0)

    def _finish(self, state: State) -> State:
        self.state = state
        self.store.write(self.job, state)
        self._lock.release()
        return state

    def _reason(self, code: int) -> str:
        line = last_error_line(self.store.log(self.job))
        if code == EXIT_REQUEUE:
            return f"stopped itself {self.means.continues + 1} times without getting done; submit again to go on"
        if code < 0:
            return f"killed by {signal_name(-code)}" + (f" after: {line}" if line else "")
        return line or f"exited with {code} and said nothing"


def deaf_to_others() -> None:
    """In the child: Ctrl-C, a closed terminal and Slurm's warning are for the parent, which asks the child to save.

    A tool that knows what to do with SIGUSR2 says so itself; its loaders' workers would die of it. The parent may hold
    signals back while it starts the child, who must not inherit that.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGUSR2))


def begin(job: Job, graph: Graph, store: Store, executor: str, job_id: str | None = None) -> State:
    """The state of a job's next attempt, as of now."""
    before = store.read(job)
    return State(
        name=job.name,
        fingerprint=job.fingerprint,
        status="running",
        executor=executor,
        attempts=before.attempts + 1 if before else 1,
        started=now(),
        inputs=store.inputs_of(job, graph) if job.after_any else None,
        job_id=job_id,
        kills=before.kills if before else 0,
    )


def write_banner(log: IO[bytes], attempt: int, command: tuple[str, ...]) -> None:
    """A line that says which attempt starts, when, and with which words."""
    log.write(f"== attempt {attempt} · {now()} · {shlex.join(command)}\n".encode())
    log.flush()


def last_error_line(log: Path, tail: int = 1 << 16) -> str:
    """The last line of a log that reads like an error, else its last line; empty when it says nothing.

    Args:
        log: the log file.
        tail: how many bytes at its end are looked at.
    """
    try:
        with open(log, "rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - tail))
            text = stream.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    attempt = text.rpartition("\n== attempt ")[2].split("\n")[1:]
    lines = [line.strip() for line in attempt if line.strip()]
    errors = [line for line in lines if _ERROR.match(line)]
    return (errors or lines or [""])[-1][:300]


def signal_name(number: int) -> str:
    """`SIGKILL (out of memory?)` for 9, and so on."""
    name = f"signal {number}"
    with contextlib.suppress(ValueError):
        name = signal.Signals(number).name
    return f"{name} (out of memory?)" if number == signal.SIGKILL else name
