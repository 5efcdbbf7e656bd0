"""The state of an experiment's jobs in words: what `status` shows, and into a pipe prints; prints nothing itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from common.console import clock
from transfer.experiment.decide import end_note, queue_note
from transfer.experiment.graph import Graph, Job
from transfer.experiment.progress import progress
from transfer.experiment.store import Store

HEADS = ("job", "state", "progress", "time", "ETA", "")


def status_rows(graph: Graph, store: Store) -> list[list[str]]:
    """A row of `HEADS` for every job.

    Args:
        graph: the jobs.
        store: where their state lies; asked for what the queue says now.
    """
    blocked = blocked_by(graph, store)
    return [[job.name, *_row(job, store, blocked.get(job.name))] for job in graph]


def title(graph: Graph, store: Store, rows: Sequence[Sequence[str]]) -> str:
    """The line above the rows: how many jobs are in which state."""
    counts = Counter(row[1] for row in rows).most_common()
    return f"{graph.experiment} → {store.run_dir}: " + ", ".join(f"{count} {word}" for word, count in counts)


def status_lines(graph: Graph, store: Store) -> Iterator[str]:
    """Title and rows as plain lines, every word of them."""
    rows = status_rows(graph, store)
    yield title(graph, store, rows)
    widths = [max(map(len, column)) for column in zip(HEADS, *rows, strict=True)]
    for row in (HEADS, *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _row(job: Job, store: Store, blocked_by: str | None) -> list[str]:
    """A job's state in one word, then progress, time, ETA and last word."""
    state = store.read(job)
    word = store.status(job, state)
    if blocked_by and word == "cancelled":
        return [word, "", "", "", f"by Slurm: needs {blocked_by}, which has no result"]
    if blocked_by and word != "running":
        return ["blocked", "", "", "", f"waits for {blocked_by}, which has no result"]
    if word in ("queued", "unknown"):
        return [word, "", "", "", queue_note(job, state, store)]
    if state is None:
        return [word, "", "", "", queue_note(job, state, store) or end_note(job, store)]
    where = progress(job, store, state)
    if word != "running":
        note = (
            where.note
            or end_note(job, store)
            or ("killed while it ran; submit again to go on" if word == "interrupted" else "")
        )
        return [word, "", clock(state.seconds or 0) if state.ended else "", "", note]
    done = "" if where.fraction is None else f"{where.fraction:4.0%}"
    eta = "" if where.eta is None else clock(where.eta)
    return [word, done, clock(state.seconds or 0), eta, where.note]


def blocked_by(graph: Graph, store: Store) -> dict[str, str]:
    """Jobs without a result that need one that failed or was cancelled, and the first such job."""
    bad: dict[str, str] = {}
    for job in graph:
        state = store.read(job)
        word = store.status(job, state)
        by = next((bad[need] for need in job.needs if need in bad), None)
        if (
            by and not job.after_any and word == "cancelled" and not store.began(job, state)
        ):  # Slurm took it out of the queue
            bad[job.name] = by
        elif word in ("failed", "cancelled"):
            bad[job.name] = job.name
        elif by and not job.after_any and word in ("pending", "interrupted", "incomplete"):
            bad[job.name] = by
    return {name: by for name, by in bad.items() if name != by}
