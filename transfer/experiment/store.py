"""The run folder: the files of every job, and what they and Slurm's queue say at one moment."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, cast

from ssl_transfer.errors import UserError
from ssl_transfer.files import read_json_object, remove_partial_files, write_json
from ssl_transfer.formats.graph import JobKind
from ssl_transfer.formats.job import STATE_FILE, SUBMISSION_FILE, JobState, SlurmSubmission, utc_now
from ssl_transfer.locks import FileLock, is_held
from transfer.experiment.graph import Graph, Job
from transfer.experiment.slurm_queue import Queue, QueueEntry, Starts, query_folder, query_jobs, query_starts

Record = TypeVar("Record", JobState, SlurmSubmission)

ENDED_WELL = ("done", "diverged")
"""A diverged trial is a result: it is not run again."""
FINAL = (*ENDED_WELL, "failed", "cancelled")
LOCK_FILE = "job.lock"
SLURM_FOLDER = "slurm"
"""Below the run folder: submission files, pickles and the output of Slurm and submitit themselves."""
CUT_OFF = ("NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "COMPLETED")
"""Slurm's states of a job that ended without writing its own state; the next submit continues it."""


@dataclass(frozen=True)
class JobView:
    """What the run folder and Slurm's queue say of one job at one moment.

    Attributes:
        job: the job.
        state: its `job.json`; None if it was never started.
        submission: its last submission to Slurm, unless a later attempt ran without Slurm.
        queue_entry: the Slurm job of this submission; None if the queue does not know it.
        queue_error: why the queue could not be queried; None if it could.
        missing: its outputs that do not exist.
        is_locked: whether a process works on it.
        former: its newest folder with another fingerprint, if it was never started with this one.
        damage: why a record of it cannot be read, in one line; empty if all can.
    """

    job: Job
    state: JobState | None = None
    submission: SlurmSubmission | None = None
    queue_entry: QueueEntry | None = None
    queue_error: str | None = None
    missing: tuple[str, ...] = ()
    is_locked: bool = False
    former: str | None = None
    damage: str = ""

    @property
    def status(self) -> str:
        """The job's state in one word.

        That of `job.json`, or: pending, queued, interrupted (killed while it ran), incomplete (done, but an output is
        missing), unknown (submitted, but the queue does not answer), damaged (a record of it cannot be read).
        """
        if self.is_locked:
            return "running"
        if self.damage:
            return "damaged"
        status = self._status_in_queue()
        if status is not None:
            return status
        if self.state is None:
            return "pending"
        if self.state.status in ("running", "requeued"):
            return "interrupted"
        if self.state.status in ENDED_WELL and self.missing:
            return "incomplete"
        return self.state.status

    def _status_in_queue(self) -> str | None:
        """The status by the queue; None where `job.json` decides."""
        if self.submission is None:
            return None
        entry, own = self.queue_entry, self._status_of_submission()
        if entry is not None and entry.is_pending:
            return "queued"
        if own in (*ENDED_WELL, "cancelled"):
            return None
        if entry is not None and entry.is_running:  # a failed one may still be requeued
            return "running"
        if own == "failed":
            return None
        if self.queue_error:
            return "unknown"
        if entry is not None and entry.state == "CANCELLED":
            return "cancelled"
        if entry is not None and entry.state not in CUT_OFF:
            return "failed"  # TIMEOUT, OUT_OF_MEMORY, FAILED …
        return None if own else "cancelled"  # it left the queue before it started

    def _status_of_submission(self) -> str | None:
        """The status that the submitted job wrote; None if it has not started."""
        started = self.state is not None and self.submission is not None and self.state.job_id == self.submission.id
        return self.state.status if started and self.state is not None else None

    @property
    def slurm_ids(self) -> set[str]:
        """Its Slurm jobs so far."""
        ids = {one.job_id for one in self.state.all_attempts()} if self.state else set()
        return {id_ for id_ in (*ids, self.submission.id if self.submission else None) if id_}

    def usage(self, starts: Starts) -> tuple[int, float]:
        """How often it was started, and the GPU-hours of all attempts: by Slurm's accounting, else by its records."""
        records = self.state.all_attempts() if self.state else []
        seconds = [one.seconds * one.gpus for one in records if one.job_id not in starts]
        for id_ in self.slurm_ids & set(starts):
            gpus = max((one.gpus for one in records if one.job_id == id_), default=0)
            seconds += [one.seconds * (gpus if one.gpus is None else one.gpus) for one in starts[id_]]
        return max(len(seconds), self.state.attempts if self.state else 0), sum(seconds) / 3600

    @property
    def has_own_end(self) -> bool:
        """Whether the last attempt wrote how it ended; else only Slurm may know."""
        return self.has_started and self.state is not None and self.state.status not in ("running", "requeued")

    @property
    def has_started(self) -> bool:
        """Whether it has started since its submission (or at all, without Slurm)."""
        return self.state is not None and (self.submission is None or self._status_of_submission() is not None)

    @property
    def is_active(self) -> bool:
        return self.status in ("running", "queued")

    @property
    def is_in_queue(self) -> bool:
        """Whether Slurm will still run it, as far as is known."""
        if self.status == "unknown":
            return True
        return self.queue_entry is not None and self.queue_entry.is_active and self.is_active


@dataclass(frozen=True)
class Snapshot:
    """Jobs at one moment: their views by name, the queue's answer by Slurm job id, or why there is none.

    Attributes:
        superseded: what still runs or waits for earlier settings, or for rows and tasks that are gone.
        starts: every start by Slurm's accounting, by Slurm id; empty without `with_accounting`.
    """

    views: Mapping[str, JobView] = field(default_factory=dict)
    queue: Queue = field(default_factory=dict)
    queue_error: str | None = None
    superseded: Sequence[JobView] = ()
    starts: Starts = field(default_factory=dict)

    def with_accounting(self) -> Snapshot:
        """With every start of the jobs by Slurm's accounting, from one query."""
        return replace(self, starts=query_starts({id_ for view in self.views.values() for id_ in view.slurm_ids}))

    @property
    def has_active(self) -> bool:
        return any(view.is_active for view in self.views.values())

    def inputs_of(self, job: Job) -> list[list[str | None]]:
        """The states of the jobs that it reads, in a form to compare: name, fingerprint, status, end."""
        return [_input(self.views[need].job, self.views[need].state) for need in job.needs]


@dataclass(frozen=True)
class Store:
    """Reads and writes a run folder."""

    run_dir: Path

    def snapshot(self, jobs: Iterable[Job], known: Snapshot | None = None) -> Snapshot:
        """The jobs' views, from one read of each file and one query of the queue.

        Args:
            jobs: the jobs; a whole graph, if what it superseded is to be found, too.
            known: reuse the queue's answer in this snapshot instead of a new query.
        """
        whole, jobs = isinstance(jobs, Graph), list(jobs)
        submissions, damages = {}, {}
        for job in jobs:
            submissions[job.name], damages[job.name] = self._read_record(job, SlurmSubmission, SUBMISSION_FILE)
        folders = self._former_folders()
        superseded = self._superseded(jobs, folders) if whole and known is None else []
        if known is None:
            all_submissions = (*submissions.values(), *(view.submission for view in superseded))
            known = _query({one.id for one in all_submissions if one is not None})
        views = {}
        for job in jobs:  # the lock before the state: what a process wrote at its end is seen
            is_locked = is_held(self._lock_file(job))
            state, damage = self._read_record(job, JobState, STATE_FILE)
            if state is not None and state.status == "running" and not is_locked:
                is_locked = is_held(self._lock_file(job))  # it may have started in between
            submission = submissions[job.name]
            if submission is not None and state is not None and state.job_id != submission.id:
                submission = None if state.attempts > submission.attempt else submission
            views[job.name] = JobView(
                job,
                state,
                submission,
                known.queue.get(submission.id) if submission else None,
                known.queue_error,
                missing=tuple(self.missing(job)),
                is_locked=is_locked,
                former=self._newest(job, folders[job.name]) if state is None else None,
                damage=damage or ("" if state is not None and (state.ended or not state.job_id) else damages[job.name]),
            )
        in_use = any(view.submission is not None for view in views.values())
        queued = (
            replace(view, queue_entry=known.queue.get(view.submission.id)) if view.submission else view
            for view in superseded
        )
        error = known.queue_error if in_use else None
        return Snapshot(views, known.queue, error, tuple(view for view in queued if view.is_active))

    def _superseded(self, jobs: Iterable[Job], folders: Mapping[str, Iterable[str]]) -> list[JobView]:
        """The views of folders that no job has any more and that may be at work, before the queue is asked."""
        current = {job.dir for job in jobs}
        found = []
        for name in (name for names in folders.values() for name in names if f"jobs/{name}" not in current):
            folder = self.run_dir / "jobs" / name
            is_locked = is_held(folder / LOCK_FILE)
            state = JobState.read_or_none(folder / STATE_FILE)
            submission = SlurmSubmission.read_or_none(folder / SUBMISSION_FILE)
            if submission and state and (state.job_id, state.status) in [(submission.id, one) for one in FINAL]:
                submission = None
            record = submission or state
            if record is not None and (submission or is_locked):
                found.append(JobView(_old_job(record), state, submission, is_locked=is_locked))
        return found

    def unnamed(self, snapshot: Snapshot) -> list[JobView]:
        """What Slurm's queue has of this run folder although no folder in it says so: those folders were deleted.

        Raises:
            UserError: the queue cannot be queried.
        """
        named = {view.submission.id for view in snapshot.views.values() if view.submission}
        named |= {view.submission.id for view in snapshot.superseded if view.submission}
        found = []
        for entry in query_folder(self.run_dir / SLURM_FOLDER):
            name = entry.name.partition(".")[2] or entry.name
            if entry.id not in named:
                submission = SlurmSubmission(id=entry.id, at="", attempt=0, requeues=0, name=name, fingerprint="")
                found.append(JobView(_old_job(submission), None, submission, entry))
        return found

    def folder(self, job: Job) -> Path:
        return self.run_dir / job.dir

    def log(self, job: Job) -> Path:
        return self.folder(job) / "stdout.log"

    def read(self, job: Job) -> JobState | None:
        """The job's `job.json`; None if it was never started, or if the file is damaged: then it starts anew."""
        return self._read_record(job, JobState, STATE_FILE)[0]

    def _read_record(self, job: Job, model: type[Record], name: str) -> tuple[Record | None, str]:
        """A file of the job's folder (None: there is none), and why it cannot be used."""
        path = self.folder(job) / name
        try:
            record = model.read(path) if path.exists() else None
        except UserError as error:
            return None, str(error)
        if record is not None and record.fingerprint != job.fingerprint:
            return None, f"{path} is of another job ({record.fingerprint[:8]}…)"
        return record, ""

    def write(self, job: Job, state: JobState) -> None:
        write_state(self.folder(job) / STATE_FILE, state)

    def remove_partial(self, job: Job) -> None:
        """Remove what a process that was killed while it wrote the job's state left; as the holder of its lock."""
        remove_partial_files(self.folder(job), [STATE_FILE])

    def lock(self, job: Job) -> FileLock:
        return FileLock(self._lock_file(job))

    def _lock_file(self, job: Job) -> Path:
        return self.folder(job) / LOCK_FILE

    def missing(self, job: Job) -> list[str]:
        return [output for output in job.outputs if not (self.run_dir / output).exists()]

    def inputs_of(self, job: Job, graph: Graph) -> list[list[str | None]]:
        return [_input(graph[need], self.read(graph[need])) for need in job.needs]

    def result_status(self, job: Job) -> str:
        """How the job ended by its own `result.json`: done or diverged."""
        path = self.folder(job) / "result.json"
        return "diverged" if path.exists() and read_json_object(path).get("status") == "diverged" else "done"

    def cancel_requested(self, job: Job, state: JobState) -> bool:
        """Whether `cancel` was requested for this very attempt."""
        path = self.folder(job) / "cancel.json"
        with contextlib.suppress(UserError):
            return path.exists() and read_json_object(path).get("attempt") == state.attempts
        return False

    def request_cancel(self, job: Job, state: JobState) -> None:
        """Request that the running attempt ends as cancelled."""
        write_json(self.folder(job) / "cancel.json", {"attempt": state.attempts, "at": utc_now()})

    def _former_folders(self) -> Mapping[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        jobs = self.run_dir / "jobs"
        for entry in os.scandir(jobs) if jobs.is_dir() else ():
            found[entry.name[:-9]].append(entry.name)
        return found

    def _newest(self, job: Job, names: Iterable[str]) -> str | None:
        folders = [self.run_dir / "jobs" / name for name in names if f"jobs/{name}" != job.dir]
        started = [folder for folder in folders if (folder / STATE_FILE).exists()]
        return max(started, key=lambda folder: folder.stat().st_mtime).name if started else None


def _old_job(record: JobState | SlurmSubmission) -> Job:
    kind = cast("JobKind", record.name.partition(".")[0])
    return Job(record.name, kind, record.fingerprint, needs=(), outputs=())


def write_state(path: Path, state: JobState) -> None:
    """Write `job.json`; on a full disk into the blocks that it has already, so that the reason is not lost.

    Raises:
        UserError: it cannot be written.
    """
    try:
        state.write(path)
    except UserError as error:
        text = json.dumps(state.replace(earlier=state.earlier[-1:]).as_dict(), indent=1).encode()
        is_full = isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT)
        if not (is_full and path.exists() and len(text) <= path.stat().st_blocks * 512):
            raise
        with open(path, "r+b") as stream:
            stream.write(text)
            stream.truncate()


def _query(ids: set[str]) -> Snapshot:
    try:
        return Snapshot(queue=query_jobs(ids))
    except UserError as error:
        return Snapshot(queue_error=str(error))


def _input(job: Job, state: JobState | None) -> list[str | None]:
    result = [state.status, state.ended] if state and state.ended else [None, None]
    return [job.name, job.fingerprint, *result]
