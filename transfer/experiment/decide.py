"""What a submit would run, and why: a pure function of the graph and a snapshot of its jobs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ssl_transfer.errors import UserError, abbreviate
from ssl_transfer.formats.job import JobState
from transfer.experiment.graph import Graph, Job, select_jobs
from transfer.experiment.store import ENDED_WELL, JobView, Snapshot

TO_RETRY = ("failed", "cancelled", "interrupted", "damaged")
Action = Literal["run", "queued", "done", "skip"]


@dataclass(frozen=True)
class Decision:
    """What a submit does with a job, and why.

    Attributes:
        action: `run`; `queued`: nothing, Slurm's queue has it; `done`: nothing, it has its result; `skip`: nothing,
            all jobs that would use it are done.
    """

    view: JobView
    action: Action
    status: str
    why: str = ""

    @property
    def job(self) -> Job:
        return self.view.job

    @property
    def state(self) -> JobState | None:
        return self.view.state


Decisions = Mapping[str, Decision]


def decide(graph: Graph, snapshot: Snapshot) -> dict[str, Decision]:
    """A decision for every job, by name, in the graph's order.

    A job without a result runs; a stage that only feeds others (pretrain, convert) runs only if one of them will.
    """
    found: dict[str, Decision] = {}
    for job in reversed(list(graph)):  # users before what they use
        users = [user for user in graph.users(job.name) if user.kind != "table"]
        needed = not users or any(found[user.name].action == "run" for user in users)
        found[job.name] = _decide_one(snapshot.views[job.name], needed)
    decisions = {job.name: found[job.name] for job in graph}
    for job in graph:
        if job.after_any:
            decisions[job.name] = _after_inputs(decisions[job.name], snapshot, decisions)
    return decisions


def select(decisions: Decisions, graph: Graph, names: Collection[str]) -> dict[str, Decision]:
    """Only the named jobs, what they still need and what follows from them; no other job runs."""
    wanted = set(names)
    for job in reversed(list(graph)):
        if job.name in wanted:
            wanted.update(need for need in job.needs if not job.after_any and decisions[need].action == "run")
    wanted = graph.downstream(wanted)
    return {name: one for name, one in decisions.items() if one.action != "run" or name in wanted}


def jobs_to_retry(graph: Graph, snapshot: Snapshot, words: Collection[str]) -> list[str]:
    """The jobs that `retry` runs: the named ones without a result, or all that failed, were cancelled or interrupted,
    or whose record is damaged.

    Raises:
        UserError: all jobs that a word names have their result already, or it names none; without words, nothing
            failed, but jobs have no result.
    """
    statuses = {name: view.status for name, view in snapshot.views.items()}
    if not words and not any(status in TO_RETRY for status in statuses.values()):
        missing = [f"{name} ({status})" for name, status in statuses.items() if status in ("pending", "incomplete")]
        if missing:
            raise UserError(f"nothing failed; {len(missing)} jobs have no result: {abbreviate(missing)}; use submit")
    found: set[str] = set()
    for word in words:
        jobs = [job.name for job in select_jobs(graph, [word])]
        open_jobs = [name for name in jobs if statuses[name] not in ENDED_WELL]
        if not open_jobs and statuses[jobs[0]] == "diverged":
            raise UserError(f"{jobs[0]} has diverged, which is a result; change its settings and submit instead")
        if not open_jobs:
            subject = f"{jobs[0]} is" if len(jobs) == 1 else f"{word}: all {len(jobs)} jobs are"
            raise UserError(f"{subject} done; there is nothing to retry")
        found.update(open_jobs)
    return [name for name, status in statuses.items() if (name in found if words else status in TO_RETRY)]


def blocked_jobs(graph: Graph, snapshot: Snapshot) -> dict[str, str]:
    """Jobs without a result that need one that failed or was cancelled, and the first such job."""
    bad: dict[str, str] = {}
    for job in graph:
        view = snapshot.views[job.name]
        status = view.status
        by = None if job.after_any else next((bad[need] for need in job.needs if need in bad), None)
        if by and status == "cancelled" and not view.has_started:  # Slurm removed it from the queue
            bad[job.name] = by
        elif status in ("failed", "cancelled"):
            bad[job.name] = job.name
        elif by and status in ("pending", "interrupted", "incomplete"):
            bad[job.name] = by
    return {name: by for name, by in bad.items() if name != by}


def is_current(decision: Decision, snapshot: Snapshot) -> bool:
    """Whether a table was made from what is on disk now."""
    state = decision.state
    return decision.status in ENDED_WELL and state is not None and state.inputs == snapshot.inputs_of(decision.job)


def describe_queue(view: JobView) -> str:
    """The state of a submitted job in the queue, and why it was requeued; empty for any other job."""
    submission, entry, state = view.submission, view.queue_entry, view.state
    if submission is None:
        return ""
    if entry is None:
        return f"submitted as Slurm job {submission.id}; {view.queue_error}" if view.queue_error else ""
    words = [f"Slurm job {entry.id}"]
    if entry.is_pending and entry.reason not in ("", "None"):
        words.append(entry.reason)
    if entry.is_running and entry.nodes:
        words.append(f"on {entry.nodes}")
    if state is not None and state.job_id == submission.id and entry.is_pending:
        words.append(f"requeued after attempt {state.attempts}" + (f": {state.error}" if state.error else ""))
    return ", ".join(words)


ENDS = {
    "BOOT_FAIL": "its node did not boot",
    "CANCELLED": "cancelled by user",
    "DEADLINE": "missed its deadline",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "ran out of memory",
    "PREEMPTED": "preempted",
    "TIMEOUT": "reached its time limit",
}


def describe_end(view: JobView) -> str:
    """Why a job has no result: what it wrote itself, else how Slurm says that it ended; empty if neither is known."""
    entry, state = view.queue_entry, view.state
    if view.has_own_end and state is not None:
        return state.error or ""
    if entry is None or entry.is_active:
        return (state.error or "") if state is not None and view.has_started else ""
    what = ENDS.get(entry.state, "ended without a record")
    if entry.state == "CANCELLED":
        what = "cancelled by Slurm" if entry.reason.startswith("Dependency") else f"{what} {entry.user}".rstrip()
    facts = [f"Slurm job {entry.id}: {entry.state}"]
    facts += [f"exit code {entry.exit_code}"] if entry.exit_code not in ("", "0:0") else []
    facts += [entry.reason] if entry.reason not in ("", "None") else []
    facts += [f"on {entry.nodes}"] if entry.nodes else []
    return f"{what} ({', '.join(facts)})"


def _decide_one(view: JobView, needed: bool) -> Decision:
    status = view.status
    if status in ENDED_WELL:
        return Decision(view, "done", status)
    if view.is_in_queue:
        return Decision(view, "queued", status, describe_queue(view))
    if not needed:
        return Decision(view, "skip", status, "not needed: all that uses it is done")
    return Decision(view, "run", status, _reason_to_run(view, status))


def _reason_to_run(view: JobView, status: str) -> str:
    if status == "incomplete":
        return f"its output {view.missing[0]} is gone"
    if status == "failed":
        return f"failed: {describe_end(view) or 'unknown'}"
    if status == "damaged":
        return f"damaged: {view.damage}"
    if status == "interrupted":
        return f"{describe_end(view) or 'was killed while it ran'}; continues from its last checkpoint"
    if status == "cancelled":
        why = describe_end(view)
        return f"{why if why.startswith('cancelled by') else 'was cancelled'}; continues from its last checkpoint"
    if status == "running":
        return "a process of an earlier submit still works on it"
    return f"its settings or inputs changed (before: {view.former})" if view.former else "has not run yet"


def _after_inputs(one: Decision, snapshot: Snapshot, decisions: Decisions) -> Decision:
    """A job that waits for its inputs however they end runs if one of them runs.

    A table is also made again if its inputs changed; a choice is made once.
    """
    will_run = [need for need in one.job.needs if decisions[need].action == "run"]
    if one.action in ("run", "queued") and not will_run:
        return one
    if one.job.kind == "choose":
        return replace(one, action="run") if one.action == "queued" else one
    if any(decisions[need].action == "queued" for need in one.job.needs) and one.action == "done":
        will_run = [need for need in one.job.needs if decisions[need].action in ("run", "queued")]
    if will_run:
        return replace(
            one, action="run", why=f"after {len(will_run)} of its inputs" if one.action == "done" else one.why
        )
    if not is_current(one, snapshot):
        return replace(one, action="run", status="outdated", why="what it read has changed")
    return one
