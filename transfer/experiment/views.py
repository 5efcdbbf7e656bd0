"""How an experiment looks on a terminal: the plan as a tree, the state as a table; prints nothing."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from common.console import clock
from transfer.experiment.costs import Entry, summary
from transfer.experiment.decide import Decision
from transfer.experiment.graph import Graph, Job
from transfer.experiment.status import HEADS, status_rows, title
from transfer.experiment.store import State, Store

STYLES = {
    "done": "green",
    "running": "bold cyan",
    "queued": "cyan",
    "unknown": "yellow",
    "failed": "bold red",
    "diverged": "yellow",
    "cancelled": "yellow",
    "interrupted": "yellow",
    "incomplete": "yellow",
    "blocked": "red",
    "pending": "dim",
    "skip": "dim",
    "run": "bold",
}
QUIET = ("pending", "queued", "done", "blocked")
"""States of which the number is enough."""


def plan_lines(
    graph: Graph,
    decisions: Mapping[str, Decision],
    run_dir: Path,
    commands: bool = False,
    seconds: Sequence[Entry] = (),
    notes: str | None = None,
) -> Iterator[Text]:
    """The tree: every job below what it needs, with what would happen and why.

    Args:
        graph: the jobs.
        decisions: what would happen to each.
        run_dir: the run folder.
        commands: show each command line as well.
        seconds: what a step takes, for the GPU-hours at the end.
        notes: the experiment's own.
    """
    counts = Counter(one.action for one in decisions.values())
    head = f"{graph.experiment} → {run_dir}: {len(decisions)} jobs, {counts['run']} to run, {counts['done']} done"
    head += f", {counts['queued']} in the queue" if counts["queued"] else ""
    yield Text(head + (f", {counts['skip']} not needed" if counts["skip"] else ""), style="bold")
    if notes:
        yield Text(notes.strip())
    width = max(len(job.name) + 3 * _depth(job, graph) for job in graph) + 3
    for row in graph.rows:
        yield Text(f"{row['label']}")
        roots = [job for job in graph if job.row == row["key"] and not job.needs]
        for index, job in enumerate(roots):
            yield from _branch(job, graph, decisions, "", index == len(roots) - 1, width, commands)
    for job in graph:
        if job.row is None:
            yield from _leaf(decisions[job.name], "", width, commands)
    for line in summary(decisions, seconds):
        yield Text(line, style="dim")


def _branch(
    job: Job, graph: Graph, decisions: Mapping[str, Decision], indent: str, last: bool, width: int, commands: bool
) -> Iterator[Text]:
    yield from _leaf(decisions[job.name], indent + ("└─ " if last else "├─ "), width, commands)
    below = [user for user in graph.users(job.name) if not user.after_any]
    for index, user in enumerate(below):
        deeper = indent + ("   " if last else "│  ")
        yield from _branch(user, graph, decisions, deeper, index == len(below) - 1, width, commands)


def _leaf(one: Decision, prefix: str, width: int, commands: bool) -> Iterator[Text]:
    word = one.status if one.action in ("done", "queued") else one.action
    why = one.why or _when(one.state)
    yield Text.assemble(
        f"{prefix}{one.job.name}".ljust(width), (f"{word:<9}", STYLES.get(word, "")), (f" {why}".rstrip(), "dim")
    )
    if commands:
        for words in one.job.commands:
            yield Text(" " * len(prefix) + "  $ " + shlex.join(words), style="dim")


def _depth(job: Job, graph: Graph) -> int:
    needs = [graph[need] for need in job.needs] if not job.after_any else []
    return 1 + max((_depth(need, graph) for need in needs), default=0)


def _when(state: State | None) -> str:
    if state is None or not state.ended:
        return ""
    at = datetime.fromisoformat(state.ended).astimezone().strftime("%Y-%m-%d %H:%M")
    return f"{at}, took {clock(state.seconds or 0)}"


def status_table(graph: Graph, store: Store, height: int | None = None) -> Group:
    """Every job with its state, progress, time and last word, for a terminal.

    Args:
        graph: the jobs.
        store: where their state lies; asked for what the queue says now.
        height: lines there are; where all jobs do not fit, those that wait or are done are only counted.
    """
    short = height is not None and len(graph.jobs) + 3 > height
    table = Table(box=None, pad_edge=False, header_style="dim", expand=True)
    for name in HEADS[:-1]:
        table.add_column(name, no_wrap=True)
    table.add_column(HEADS[-1], overflow="ellipsis", no_wrap=True, ratio=1)  # what is left of the line
    rows = status_rows(graph, store)
    for name, word, *cells in rows:
        if not (short and word in QUIET):
            table.add_row(name, Text(word, style=STYLES.get(word, "")), *cells)
    return Group(Text(title(graph, store, rows), style="bold"), table)
