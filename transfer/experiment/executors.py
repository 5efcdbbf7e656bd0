"""What the executors share: the plan of a run, the order of its jobs, and one attempt at a job as child processes."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from ssl_transfer.console import QUIET
from ssl_transfer.errors import EXIT_REQUEUE, UserError, redact_urls
from ssl_transfer.files import read_tail
from ssl_transfer.formats.heartbeat import attempt_name, find_hang
from ssl_transfer.formats.job import STATE_FILE, JobState, JobStatus, utc_now
from ssl_transfer.locks import FileLock, kill_tree, process_id
from transfer.experiment.commands import Command, Tools
from transfer.experiment.decide import Decisions
from transfer.experiment.graph import Graph, Job
from transfer.experiment.spec import Experiment
from transfer.experiment.store import Snapshot, Store

_ERROR = re.compile(r"^(error: |[\w.]+: error: |[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b)")
FOLDER_SECONDS, FOLDER_MISSES = 5.0, 2
"""How often a running job looks for its folder, and how often in a row it must be gone: a file server may hiccup."""
LOG_TAIL = 1 << 16
"""Bytes at the end of a log that are searched for the last error."""


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What an executor runs: the jobs of `decisions` whose action is `run`. Jobs left out are not touched."""

    experiment: Experiment
    graph: Graph
    decisions: Decisions
    store: Store
    tools: Tools
    snapshot: Snapshot

    def to_run(self) -> list[Job]:
        """The jobs to run: those with the longest chain behind them first, else in the graph's order."""
        height = self.graph.heights()
        jobs = [one.job for one in self.decisions.values() if one.action == "run"]
        return sorted(jobs, key=lambda job: -height[job.name])


@dataclass
class RunOutcome:
    """What an executor did.

    Attributes:
        ran: the final state of every job that ran.
        blocked: jobs that did not run, and the job without a result that each needs.
        submitted: the Slurm ids of the jobs submitted to the queue.
        already_queued: how many jobs were in the queue before.
        stopped: the signal that ended the run early; None if it ran to its end.
        left: jobs that are still to be submitted, because the queue had no room for them.
        no_room: what sbatch said then.
    """

    ran: dict[str, JobState] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    submitted: dict[str, str] = field(default_factory=dict)
    already_queued: int = 0
    stopped: int | None = None
    left: list[str] = field(default_factory=list)
    no_room: str = ""

    @property
    def without_result(self) -> list[str]:
        return [n for n, state in self.ran.items() if state.status in ("failed", "cancelled")] + list(self.blocked)


class RunListener(Protocol):
    """Is notified of what happens in a run, to show it."""

    def begin(self, plan: RunPlan, side_by_side: int) -> None:
        """The run starts, with at most so many jobs at a time (0: as Slurm decides)."""

    def submitted(self, jobs: Sequence[Job], ids: Sequence[str], after: str) -> None:
        """Jobs were submitted under these Slurm ids; `after` names the jobs that they wait for."""

    def no_room(self, left: Sequence[str], why: str) -> None:
        """The queue takes no more jobs now; these are still to be submitted."""

    def started(self, job: Job, state: JobState) -> None:
        """A job has started."""

    def waiting(self, job: Job, state: JobState | None) -> None:
        """A job cannot start: a process of an earlier submit still works on it."""

    def ended(self, job: Job, state: JobState) -> None:
        """A job has ended, with a result or without."""

    def stopping(self, names: Sequence[str], grace: float) -> None:
        """These jobs were asked to save a checkpoint and exit; they are killed after `grace` seconds."""

    def blocked(self, job: Job, by: str) -> None:
        """A job will not run, because job `by` has no result."""

    def tick(self, running: Mapping[str, JobState]) -> None:
        """Called several times per second."""

    def end(self) -> None:
        """The run is over."""


class Executor(ABC):
    """A way to run jobs.

    `run` returns when its part is done: local and debug when every job has ended, slurm when every job is submitted.
    """

    name: str

    def refusal(self, _experiment: Experiment, decisions: Decisions) -> str | None:
        """Why it cannot run them, in one line; None if it can. By default: Slurm's queue holds some of them."""
        queued = [name for name, one in decisions.items() if one.action == "queued"]
        if not queued:
            return None
        advice = "wait for them, `cancel` them, or give --cluster slurm"
        return f"{len(queued)} jobs of this run folder are in Slurm's queue, such as {queued[0]}; {advice}"

    @abstractmethod
    def run(self, plan: RunPlan, listener: RunListener) -> RunOutcome:
        """Run the plan."""

    def dry_run(self, plan: RunPlan) -> Iterator[str]:
        """What `run` would start, as text; by default the jobs' command lines. Writes and starts nothing."""
        for job in plan.to_run():
            for words in job.commands(plan.tools):
                yield f"# {job.name}\n{shlex.join(words)}"


def job_environment(experiment: Experiment) -> dict[str, str]:
    """The environment variables of every job: its threads, then those of the experiment file."""
    return {"OMP_NUM_THREADS": str(experiment.local.threads), **experiment.environment}


class ReadyQueue:
    """The jobs that still have to start. `outcome` is updated with what ran and what is blocked."""

    def __init__(self, plan: RunPlan, outcome: RunOutcome) -> None:
        self.waiting = plan.to_run()
        self.outcome = outcome
        self.unfinished = {job.name for job in self.waiting}

    def finish(self, job: Job, state: JobState) -> None:
        self.outcome.ran[job.name] = state
        self.unfinished.discard(job.name)

    def pop_blocked(self) -> list[Job]:
        """Remove the jobs that can no longer run; `outcome.blocked` names the reasons."""
        found: list[Job] = []
        while True:
            bad = set(self.outcome.without_result)
            hit = [(job, need) for job in self.waiting if not job.after_any for need in job.needs if need in bad]
            if not hit:
                return found
            job, need = hit[0]
            self.outcome.blocked[job.name] = self.outcome.blocked.get(need, need)
            self.waiting.remove(job)
            self.unfinished.discard(job.name)
            found.append(job)

    def ready(self) -> list[Job]:
        """The jobs whose inputs have all ended, most urgent first."""
        return [job for job in self.waiting if not self.unfinished.intersection(job.needs)]

    def start(self, job: Job) -> None:
        self.waiting.remove(job)


@dataclass(frozen=True)
class RunContext:
    """What the attempts of an executor have in common.

    Attributes:
        executor: the executor's name, for `job.json`.
        environment: variables laid over those of this process.
        max_resumes: how often a command that exits with 75 (stopped after a checkpoint) is restarted.
        job_id: the Slurm job of this process; None without Slurm.
        restarts: how often Slurm has requeued it.
        gpus: the GPUs that an attempt gets, on all nodes.
    """

    executor: str
    environment: Mapping[str, str] = field(default_factory=dict)
    max_resumes: int = 0
    job_id: str | None = None
    restarts: int | None = None
    gpus: int = 0


class FolderDeleted(UserError):
    """A job's folder was deleted while the job ran: nothing is left to continue or to write to."""


class JobAttempt:
    """Runs a job's commands as children of this process: `start`, then `poll` until it returns a state.

    The children hold the job's lock. While one of them lives, no other process starts the job, and every process sees
    that it runs, even if this process was killed.
    """

    def __init__(
        self,
        job: Job,
        commands: Sequence[Command],
        store: Store,
        context: RunContext,
        *,
        state: JobState,
        lock: FileLock,
    ) -> None:
        self.job, self.store, self.context, self.state = job, store, context, state
        self._lock = lock
        self._commands = list(commands)
        self._resumes_left = context.max_resumes
        self._stop_reason: str | None = None
        self._stop_status: JobStatus = "cancelled"
        self._folder_checked, self._folder_missed = time.monotonic(), 0
        self._child = self._launch()

    @classmethod
    def start(
        cls,
        job: Job,
        commands: Sequence[Command],
        graph: Graph,
        store: Store,
        context: RunContext,
        *,
        timeout: float = 0.1,
    ) -> JobAttempt | None:
        """Start the first command; None if another process works on the job during the whole `timeout` (seconds)."""
        lock = store.lock(job)
        if not lock.acquire(timeout):
            return None
        try:
            store.remove_partial(job)
            state = next_attempt(job, graph, store, context)
            return cls(job, commands, store, context, state=state, lock=lock)
        except BaseException:
            lock.release()
            raise

    def poll(self) -> JobState | None:
        """The job's final state once it has ended, else None; starts the next command when it is due.

        Raises:
            FolderDeleted: the command was killed, nothing was written.
        """
        self._check_folder()
        code = self._child.poll()
        if code is None:
            return None
        if code == 0:
            del self._commands[0]
            if self._commands and not self._stop_reason:
                self._child = self._launch()
                return None
            return self._finish(self._state_after_success())
        if self.store.cancel_requested(self.job, self.state):
            return self._finish(self.state.finish("cancelled", exit_code=code, error=self._stop_reason or "cancelled"))
        if self._stop_reason:
            return self._finish(self.state.finish(self._stop_status, exit_code=code, error=self._stop_reason))
        if code == EXIT_REQUEUE and self._resumes_left and not self._is_hung():
            self._resumes_left -= 1
            self._child = self._launch()
            return None
        error = describe_exit(code, self.store.log(self.job), self.context.max_resumes)
        return self._finish(self.state.finish("failed", exit_code=code, error=error))

    def _is_hung(self) -> bool:
        """Whether the command ended itself in a hang on Slurm, where all processes of the job start again together."""
        return self.context.job_id is not None and find_hang(self.store.folder(self.job), attempt_name()) is not None

    def stop(self, reason: str, status: JobStatus = "cancelled", send: bool = True) -> None:
        """Ask the running command to save a checkpoint and exit; the attempt will end as `status`.

        Args:
            reason: written to `job.json`.
            send: send SIGTERM; False if the command has received it already.
        """
        self._stop_reason, self._stop_status = reason, status
        if send and self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        if self._child.poll() is None:
            kill_tree(self._child.pid)

    def _check_folder(self) -> None:
        """Look now and then whether the folder still has the `job.json` that was written before the command started."""
        now, runs = time.monotonic(), self._child.poll() is None
        if runs and now < self._folder_checked + FOLDER_SECONDS:
            return
        is_there = (self.store.folder(self.job) / STATE_FILE).exists()
        self._folder_checked, self._folder_missed = now, 0 if is_there else self._folder_missed + 1
        if self._folder_missed >= (FOLDER_MISSES if runs else 1):
            self.kill()
            self._child.wait()
            self._lock.release()
            raise FolderDeleted(f"{self.store.folder(self.job)} was deleted while {self.job.name} ran; the job ends")

    def _launch(self) -> subprocess.Popen[bytes]:
        self.store.write(self.job, self.state)  # before the process: one without a record would be lost
        child = start_command(
            self._commands[0],
            self.store.log(self.job),
            self.state.attempts,
            self.context.environment,
            pass_fds=(self._lock.fileno(),),
        )
        process = process_id(child.pid)
        self._lock.add(process)
        self.state = self.state.replace(process=process)
        self.store.write(self.job, self.state)
        return child

    def _state_after_success(self) -> JobState:
        if self._commands:
            return self.state.finish(self._stop_status, exit_code=0, error=self._stop_reason)
        return state_after_success(self.job, self.store, self.state)

    def _finish(self, state: JobState) -> JobState:
        self.state = state
        self.store.write(self.job, state)
        self._lock.release()
        return state


def next_attempt(job: Job, graph: Graph, store: Store, context: RunContext) -> JobState:
    """The state of the job's next attempt, which starts now."""
    state = JobState(
        name=job.name,
        fingerprint=job.fingerprint,
        status="running",
        executor=context.executor,
        attempts=1,
        started=utc_now(),
        inputs=store.inputs_of(job, graph) if job.after_any else None,
        job_id=context.job_id,
        restarts=context.restarts,
        gpus=context.gpus,
    )
    return state.after(store.read(job), store.log(job))


def state_after_success(job: Job, store: Store, state: JobState) -> JobState:
    """The final state of an attempt whose commands all exited with 0; it failed if an output is missing."""
    missing = store.missing(job)
    if missing:
        return state.finish("failed", exit_code=0, error=f"exited with 0 but wrote no {missing[0]}")
    try:
        return state.finish("diverged" if store.result_status(job) == "diverged" else "done", exit_code=0)
    except UserError as error:
        return state.finish("failed", exit_code=0, error=str(error)[:300])


def open_log(log: Path) -> IO[bytes]:
    """A job's log, to append to it; fails where it is a named pipe, instead of waiting for its reader."""
    return open(log, "ab", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK, 0o666))


def start_command(
    command: Command, log: Path, attempt: int, environment: Mapping[str, str], pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        stream = open_log(log)
        write_banner(stream, attempt, command)
    except OSError as error:
        raise UserError(f"cannot write {log}: {error.strerror}; free some space there, then retry") from error
    with stream:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", QUIET: "", **environment},
            pass_fds=pass_fds,
            preexec_fn=ignore_signals,
        )


def ignore_signals() -> None:
    """In the child: ignore Ctrl-C, a closed terminal and Slurm's warning, which the parent handles.

    A tool that handles SIGUSR2 installs its own handler; the workers of its data loaders would die of the signal. The
    parent may block signals while it starts the child, which must not inherit that.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGUSR2))


def write_banner(log: IO[bytes], attempt: int, command: Command) -> None:
    log.write(f"== attempt {attempt} · {utc_now()} · {redact_urls(shlex.join(command))}\n".encode())
    log.flush()


def describe_exit(code: int, log: Path, max_resumes: int = 0) -> str:
    """Why a command failed: its last error line, the signal that killed it, its exit code; a full disk comes first."""
    line = last_error_line(log)
    full = why_full(log.parent)
    if full is not None and full not in line:
        return f"the disk of {log.parent} is full ({full}); free some space, then retry" + (f"; {line}" if line else "")
    if code == EXIT_REQUEUE:
        hung = f" ({line.removeprefix('error: ')})" if "hung: " in line else ""
        return f"stopped itself {max_resumes + 1} times without finishing{hung}; submit again to continue"
    if code < 0:
        return f"killed by {signal_name(-code)}" + (f" after: {line}" if line else "")
    return line or f"exited with {code} and printed nothing"


def why_full(folder: Path) -> str | None:
    """Why a folder takes no more data, in the system's words (no space left, quota exceeded); None if it does."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(LOG_TAIL))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return error.strerror if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
    return None


def last_error_line(log: Path) -> str:
    """The last line of the last attempt in a log that looks like an error, else its last line; empty if none."""
    text = read_tail(log, LOG_TAIL)
    attempt = text[max(text.rfind("== attempt "), 0) :].split("\n")
    lines = [line.strip() for line in attempt if line.strip() and not line.startswith("== attempt ")]
    errors = [line for line in lines if _ERROR.match(line)]
    return (errors or lines or [""])[-1][:300]


def signal_name(number: int) -> str:
    """A signal's name, such as `SIGTERM`; SIGKILL with a hint to its usual cause."""
    name = f"signal {number}"
    with contextlib.suppress(ValueError):
        name = signal.Signals(number).name
    return f"{name} (out of memory?)" if number == signal.SIGKILL else name
