"""The run folder: every job's folder and its `job.json`, the only memory there is."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json, write_json
from transfer.experiment.filing import Filed, read_filed
from transfer.experiment.graph import Graph, Job
from transfer.experiment.locks import FileLock, is_held
from transfer.experiment.processes import Process
from transfer.experiment.queue import Entry, Queue, look

FORMAT = "job/1"
ENDED_WELL = ("done", "diverged")
"""A diverged trial is a result: it is never run again by itself."""
KILLED = ("NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "COMPLETED")
"""How the queue says that a job was cut off without a word of its own; the next submit goes on with it."""


@dataclass(frozen=True)
class State:
    """What `job.json` says.

    Attributes:
        name: the job's name.
        fingerprint: the job's fingerprint.
        status: running, done, diverged, failed or cancelled; requeued: stopped after a checkpoint and put back into the
            queue.
        executor: local, debug or slurm: who knows whether a running one lives.
        attempts: how often it was started.
        started: when the last attempt started, UTC, ISO 8601.
        ended: when it ended; None while it runs.
        exit_code: of the last command; minus the signal's number where one ended it.
        error: the last error line of a failed attempt.
        process: the process that does the work, while it runs.
        inputs: what the table read: name, fingerprint, status, end of every input.
        job_id: the queue's id of the job that ran the attempt; None where there is no queue.
        kills: how many attempts in a row were killed (SIGKILL, a process that vanished).
    """

    name: str
    fingerprint: str
    status: str
    executor: str
    attempts: int
    started: str
    ended: str | None = None
    exit_code: int | None = None
    error: str | None = None
    process: Process | None = None
    inputs: list[list[str | None]] | None = None
    job_id: str | None = None
    kills: int = 0

    @classmethod
    def of(cls, content: dict[str, Any]) -> State:
        """From the content of `job.json`."""
        process = content.get("process")
        known = {field.name for field in fields(cls)}
        values = {key: value for key, value in content.items() if key in known}
        return cls(**{**values, "process": Process(**process) if process else None})

    def content(self) -> dict[str, Any]:
        """For `job.json`."""
        return {"format": FORMAT, **asdict(self)}

    @property
    def seconds(self) -> float | None:
        """How long the last attempt took, or takes since."""
        end = datetime.fromisoformat(self.ended) if self.ended else datetime.now(timezone.utc)
        return (end - datetime.fromisoformat(self.started)).total_seconds()


def now() -> str:
    """The time, UTC, ISO 8601 to the second's thousandth."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Store:
    """A run folder.

    Attributes:
        run_dir: the folder.
        queue: what the cluster's queue said of the filed jobs, when it was last asked (`asked`).
        deaf: why it could not be asked; None when it could.
        listing: the jobs' folders as they were then: hundreds of jobs each look for their former ones.
    """

    run_dir: Path
    queue: Queue = field(default_factory=dict)
    deaf: str | None = None
    listing: tuple[str, ...] | None = field(default=None, repr=False)

    def asked(self, graph: Graph) -> Store:
        """The same folder, with what the queue says now of every job that has no end on disk: one call for all."""
        here = replace(self, listing=tuple(replace(self, listing=None)._folders()))
        ids = {}
        for job in graph:
            filed = self.filed(job)
            if filed is not None:
                ids[job.name] = filed.id
        try:
            return replace(here, queue=look(set(ids.values())), deaf=None)
        except UserError as error:
            return replace(here, queue={}, deaf=str(error))

    def folder(self, job: Job) -> Path:
        """The job's folder."""
        return self.run_dir / job.dir

    def log(self, job: Job) -> Path:
        """What the job printed."""
        return self.folder(job) / "stdout.log"

    def read(self, job: Job) -> State | None:
        """What `job.json` says; None when the job was never started.

        Raises:
            UserError: the folder belongs to a job with another fingerprint.
        """
        path = self.folder(job) / "job.json"
        if not path.exists():
            return None
        content: dict[str, Any] = read_json(path)
        if content.get("fingerprint") != job.fingerprint:
            raise UserError(f"{path} is of another job ({content.get('fingerprint')}); move that folder away")
        return State.of(content)

    def write(self, job: Job, state: State) -> None:
        """Write `job.json`."""
        write_json(self.folder(job) / "job.json", state.content())

    def filed(self, job: Job) -> Filed | None:
        """The job's filing that counts: not one that a later attempt outside the queue has overtaken."""
        filed = read_filed(self.folder(job))
        if filed is None:
            return None
        state = self.read(job)
        overtaken = state is not None and state.job_id != filed.id and state.attempts > filed.attempt
        return None if overtaken else filed

    def entry(self, job: Job) -> Entry | None:
        """What the queue says of the job."""
        filed = self.filed(job)
        return self.queue.get(filed.id) if filed else None

    def lock(self, job: Job) -> FileLock:
        """The lock that the job's process holds while it lives."""
        return FileLock(self.folder(job) / "job.lock")

    def began(self, job: Job, state: State | None) -> bool:
        """Whether the job has started at all since it was last filed (or asked for, where there is no queue)."""
        filed = self.filed(job)
        return state is not None and (filed is None or state.job_id == filed.id)

    def lives(self, job: Job) -> bool:
        """Whether a process works on the job, whatever `job.json` says."""
        return is_held(self.folder(job) / "job.lock")

    def active(self, job: Job) -> bool:
        """Whether something is still to come: a process works on it, or it waits in the queue."""
        return self.status(job, self.read(job)) in ("running", "queued")

    def status(self, job: Job, state: State | None) -> str:
        """The job's state in one word: `State.status`, or pending, queued, interrupted (killed while running),
        incomplete (done once, but an output is gone), unknown (filed, but the queue does not answer)."""
        if self.lives(job):
            return "running"
        filed = self.filed(job)
        if filed is not None:
            word = self._filed_status(filed, state)
            if word is not None:
                return word
        if state is None:
            return "pending"
        if state.status in ("running", "requeued"):
            return "interrupted"
        if state.status in ENDED_WELL and self.missing(job):
            return "incomplete"
        return state.status

    def _filed_status(self, filed: Filed, state: State | None) -> str | None:
        """A filed job's state as the queue has it; None where its own words count."""
        entry = self.queue.get(filed.id)
        mine = state is not None and state.job_id == filed.id
        word = state.status if mine and state is not None else ""
        if entry is not None and entry.pending:
            return "queued"
        if word in (*ENDED_WELL, "cancelled"):
            return None
        if entry is not None and entry.running:  # one that failed may yet be put back
            return "running"
        if word == "failed":
            return None
        if self.deaf:
            return "unknown"
        if entry is not None and entry.state == "CANCELLED":
            return "cancelled"
        if entry is not None and entry.state not in KILLED:
            return "failed"  # TIMEOUT, OUT_OF_MEMORY, FAILED …
        return None if mine else "cancelled"  # it never began, and is gone

    def missing(self, job: Job) -> list[str]:
        """The job's outputs that are not there."""
        return [output for output in job.outputs if not (self.run_dir / output).exists()]

    def result_status(self, job: Job) -> str:
        """What the job's own `result.json` says it ended as: done or diverged."""
        path = self.folder(job) / "result.json"
        return "diverged" if path.exists() and read_json(path).get("status") == "diverged" else "done"

    def former(self, job: Job) -> list[Path]:
        """Folders of the same job under other fingerprints, newest first."""
        folders = (self.run_dir / name for name in self._folders())
        mine = (folder for folder in folders if folder.name[:-9] == job.name and folder != self.folder(job))
        others = [folder for folder in mine if (folder / "job.json").exists()]
        return sorted(others, key=lambda folder: folder.stat().st_mtime, reverse=True)

    def _folders(self) -> list[str]:
        if self.listing is not None:
            return list(self.listing)
        jobs = self.run_dir / "jobs"
        return [f"jobs/{entry.name}" for entry in os.scandir(jobs)] if jobs.is_dir() else []

    def inputs_of(self, job: Job, graph: Graph) -> list[list[str | None]]:
        """The state of everything a job reads, in a form to compare: name, fingerprint, status, end."""
        found: list[list[str | None]] = []
        for need in job.needs:
            state = self.read(graph[need])
            result = [state.status, state.ended] if state and state.ended else [None, None]
            found.append([need, graph[need].fingerprint, *result])
        return found

    def cancel_requested(self, job: Job, state: State) -> bool:
        """Whether `cancel` asked for this very attempt to end."""
        path = self.folder(job) / "cancel.json"
        return path.exists() and read_json(path).get("attempt") == state.attempts

    def request_cancel(self, job: Job, state: State) -> None:
        """Ask for the attempt that runs now to end as cancelled."""
        write_json(self.folder(job) / "cancel.json", {"attempt": state.attempts, "at": now()})


def ended(state: State, status: str, **changes: Any) -> State:
    """`state` as it is once the attempt has ended."""
    return replace(state, status=status, ended=now(), process=None, **changes)
