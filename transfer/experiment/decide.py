"""What would run, and why: a pure function of the graph and what lies on disk."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from transfer.experiment.graph import Graph, Job
from transfer.experiment.store import ENDED_WELL, State, Store

Action = Literal["run", "queued", "done", "skip"]


@dataclass(frozen=True)
class Decision:
    """What happens to a job when the graph is submitted.

    Attributes:
        job: the job.
        action: `run`; `queued`: nothing, the cluster's queue has it; `done`: nothing, it has its result; `skip`:
            nothing, whatever would use it is done.
        status: the state it is in now.
        why: the reason, in words.
        state: its `job.json`.
    """

    job: Job
    action: Action
    status: str
    why: str
    state: State | None


def decide(graph: Graph, store: Store) -> dict[str, Decision]:
    """A decision for every job, by name, in the graph's order.

    A job without a result runs; a stage that only feeds others (pretrain, convert) runs only when one of them will.
    """
    found: dict[str, Decision] = {}
    for job in reversed(list(graph)):  # users before what they use
        users = [user for user in graph.users(job.name) if user.kind != "table"]
        wanted = not users or any(found[user.name].action == "run" for user in users)
        found[job.name] = _decide_one(job, graph, store, wanted)
    decisions = {job.name: found[job.name] for job in graph}
    for job in graph:
        if job.after_any:
            decisions[job.name] = _after_inputs(decisions[job.name], graph, store, decisions)
    return decisions


def select(decisions: dict[str, Decision], graph: Graph, names: Collection[str]) -> dict[str, Decision]:
    """Only the named jobs, what they still need and what follows from them; everything else is left alone."""
    wanted = set(names)
    for job in reversed(list(graph)):
        if job.name in wanted:
            wanted.update(need for need in job.needs if not job.after_any and decisions[need].action == "run")
    wanted = graph.downstream(wanted)
    return {name: one for name, one in decisions.items() if one.action != "run" or name in wanted}


def _decide_one(job: Job, graph: Graph, store: Store, wanted: bool) -> Decision:
    state = store.read(job)
    status = store.status(job, state)
    if status in ENDED_WELL:
        return Decision(job, "done", status, "", state)
    entry = store.entry(job)
    if status == "unknown" or (entry is not None and entry.active and status in ("queued", "running")):
        return Decision(job, "queued", status, queue_note(job, state, store), state)
    if not wanted:
        return Decision(job, "skip", status, "not needed: all that uses it is done", state)
    return Decision(job, "run", status, _why(job, status, state, store), state)


def queue_note(job: Job, state: State | None, store: Store) -> str:
    """What the queue says of a job it has, and why the job was put back if it was; empty for any other."""
    filed, entry = store.filed(job), store.entry(job)
    if filed is None:
        return ""
    if entry is None:
        return f"filed as Slurm job {filed.id}; {store.deaf}" if store.deaf else ""
    words = [f"Slurm job {entry.id}"]
    if entry.pending and entry.reason not in ("", "None"):
        words.append(entry.reason)
    if entry.running and entry.nodes:
        words.append(f"on {entry.nodes}")
    if state is not None and state.job_id == filed.id and entry.pending:
        words.append(f"put back after attempt {state.attempts}" + (f": {state.error}" if state.error else ""))
    return ", ".join(words)


def end_note(job: Job, store: Store) -> str:
    """How a filed job ended that left no word of its own."""
    entry = store.entry(job)
    if entry is None or entry.active:
        return ""
    return f"Slurm job {entry.id} ended as {entry.state}"


def _why(job: Job, status: str, state: State | None, store: Store) -> str:
    if status == "incomplete":
        return f"its output {store.missing(job)[0]} is gone"
    if status == "failed":
        return f"failed: {(state.error if state else None) or end_note(job, store) or 'unknown'}"
    if status == "interrupted":
        return "was killed while it ran; goes on from its last checkpoint"
    if status == "cancelled":
        return "was cancelled; goes on from its last checkpoint"
    if status == "running":
        return "a process of an earlier submit still works on it"
    former = store.former(job)
    return f"its settings or inputs changed (before: {former[0].name})" if former else "has not run yet"


def _after_inputs(one: Decision, graph: Graph, store: Store, decisions: dict[str, Decision]) -> Decision:
    """What waits for its inputs however they end is filed behind those that run; a table is done only while what it
    read is what there is, a choice is not made again."""
    will_run = [need for need in one.job.needs if decisions[need].action == "run"]
    if one.action in ("run", "queued") and not will_run:
        return one
    if one.job.kind == "choose":
        return Decision(one.job, "run", one.status, one.why, one.state) if one.action == "queued" else one
    if any(decisions[need].action == "queued" for need in one.job.needs) and one.action == "done":
        will_run = [need for need in one.job.needs if decisions[need].action in ("run", "queued")]
    if will_run:
        why = f"after {len(will_run)} of its inputs" if one.action == "done" else one.why
        return Decision(one.job, "run", one.status, why, one.state)
    if not is_current(one, graph, store):
        return Decision(one.job, "run", "outdated", "what it read has changed", one.state)
    return one


def is_current(one: Decision, graph: Graph, store: Store) -> bool:
    """Whether the table was made, and from what lies on disk now."""
    made = one.status in ENDED_WELL and one.state is not None
    return made and one.state is not None and one.state.inputs == store.inputs_of(one.job, graph)
