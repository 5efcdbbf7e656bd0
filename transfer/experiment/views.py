"""How an experiment looks to its user: the plan with its cost, the state of the jobs, and the reports of a run."""

from __future__ import annotations

import json
import math
import os
import shlex
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_transfer.console import as_typed, clock, is_live, is_quiet
from ssl_transfer.errors import UserError, abbreviate, printable, redact_urls
from ssl_transfer.files import expect_shape, open_input, read_json_object
from ssl_transfer.formats.heartbeat import describe_stragglers, read_heartbeats
from ssl_transfer.formats.job import JobState
from ssl_transfer.locks import SILENT_SECONDS, SUBMIT_LOCK, why_no_flock
from transfer.experiment.commands import Tools
from transfer.experiment.decide import Decision, Decisions, blocked_jobs, describe_end, describe_queue
from transfer.experiment.executors import RunPlan
from transfer.experiment.graph import Graph, Job, select_jobs
from transfer.experiment.spec import StepTime, format_hours
from transfer.experiment.store import JobView, Snapshot, Store

if TYPE_CHECKING:  # a pipe needs no terminal library, which is slow to import
    from rich.console import Console, Group
    from rich.text import Text

STYLES = {
    "done": "green",
    "running": "bold cyan",
    "queued": "cyan",
    "unknown": "yellow",
    "failed": "bold red",
    "damaged": "bold red",
    "diverged": "yellow",
    "cancelled": "yellow",
    "interrupted": "yellow",
    "incomplete": "yellow",
    "blocked": "red",
    "pending": "dim",
    "skip": "dim",
    "run": "bold",
}
COUNTED = ("pending", "queued", "done", "blocked")
"""States whose jobs are only counted where space is short."""
SILENCE = 120.0
"""Seconds after which a running job without a heartbeat is named; one is written every ten."""
CLOCK_SKEW = 60.0
"""Seconds by which the clocks of two machines may differ before it is said."""
METRICS_TAIL = 1 << 16
"""Bytes at the end of a metrics file that certainly hold its last line."""


@dataclass(frozen=True)
class JobProgress:
    """How far a job is: the fraction done, remaining seconds (None: unknown), and its loss or result."""

    fraction: float | None = None
    eta: float | None = None
    note: str = ""


def job_progress(job: Job, folder: Path, state: JobState | None) -> JobProgress:
    """How far the job is, from the metrics file that its tool writes; never raises for an incomplete file."""
    if state is not None and state.ended:
        return JobProgress(note=state.error or _headline(folder / "result.json"))
    metrics = last_metrics(folder / "metrics.json")
    count, loss = _finite(metrics.get(job.counter)), _finite(metrics.get("total_loss", metrics.get("loss")))
    fraction = min(count / job.total, 1.0) if count is not None and job.total else None
    notes = ["" if loss is None else f"loss {loss:.4g}", _health(folder, state) if state is not None else ""]
    return JobProgress(fraction, _eta(metrics, fraction), " · ".join(note for note in notes if note))


def _health(folder: Path, state: JobState) -> str:
    """What the heartbeats of this attempt's processes say: one that hung, silence, or a straggler."""
    started = datetime.fromisoformat(state.started)
    heartbeats = [one for one in read_heartbeats(folder) if datetime.fromisoformat(one.at) >= started]
    if not heartbeats:
        return ""
    hung = next((one.hung for one in heartbeats if one.hung), None)
    silent = time.time() - max(datetime.fromisoformat(one.at).timestamp() for one in heartbeats)
    if hung is None and silent > SILENCE:
        return f"no heartbeat for {clock(silent)}"
    doing = next((one.doing for one in heartbeats if one.doing), None)
    return f"hung: {hung}" if hung else doing or describe_stragglers(heartbeats) or ""


def last_metrics(path: Path) -> dict[str, Any]:
    """The last complete line of a metrics file (JSON lines); empty if there is none."""
    try:
        with open_input(path) as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - METRICS_TAIL))
            lines = stream.read().split(b"\n")[:-1]  # text after the last line break is still being written
    except (OSError, UserError):
        return {}
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return {}


def _eta(metrics: dict[str, Any], fraction: float | None) -> float | None:
    own = _finite(metrics.get("eta_seconds"))
    if own is not None:
        return own
    seconds, iteration = _finite(metrics.get("time")), _finite(metrics.get("iteration"))
    if not fraction or seconds is None or iteration is None:
        return None
    return seconds * iteration * (1 - fraction) / fraction


def _headline(path: Path) -> str:
    try:
        with expect_shape(path, "retry the job"):
            return _describe_result(read_json_object(path)) if path.exists() else ""
    except UserError as error:
        return str(error)


def _describe_result(result: dict[str, Any]) -> str:
    if result.get("status") == "diverged":
        divergence = result.get("divergence") or {}
        return f"diverged at iteration {divergence.get('iteration', 'unknown')}: {divergence.get('what', 'unknown')}"
    metrics = result.get("metrics") or {}
    for name, value in (("AP50", (metrics.get("bbox") or {}).get("AP50")), ("top-1", metrics.get("top1"))):
        if _finite(value) is not None:
            return f"{name} {value:.1f}"
    final = result.get("final") or {}
    return " · ".join(f"{key} {final[key]:.4g}" for key in ("loss", "std") if _finite(final.get(key)) is not None)


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


@dataclass(frozen=True)
class JobCost:
    """GPU-hours of a job, and the step time that they are computed from."""

    gpu_hours: float
    measured: StepTime


def job_cost(job: Job, step_times: Sequence[StepTime]) -> JobCost | None:
    """A job's cost by the first step time for its recipe; None if there is none."""
    for one in step_times:
        if job.recipe in one.recipes and job.total and one.per == job.counter:
            return JobCost(job.total * one.seconds * one.gpus / 3600, one)
    return None


def cost_lines(
    graph: Graph, decisions: Decisions, step_times: Sequence[StepTime], gpus: Mapping[str, int]
) -> Iterator[str]:
    """The cost of the jobs to run: one line per stage, the total, and the longest chain of jobs.

    Args:
        graph, decisions: the jobs, and which of them run; stages that need no GPU are left out.
        step_times: what the cost is computed from.
        gpus: how many each job gets.
    """
    by_kind: dict[str, list[Job]] = defaultdict(list)
    for one in decisions.values():
        if one.action == "run" and one.job.kind not in ("convert", "choose", "table"):
            by_kind[one.job.kind].append(one.job)
    costs = {job.name: job_cost(job, step_times) for jobs in by_kind.values() for job in jobs}
    for kind, jobs in by_kind.items():
        known = [cost for job in jobs if (cost := costs[job.name]) is not None]
        sources = "; ".join(dict.fromkeys(one.measured.source for one in known))
        text = _describe_costs([costs[job.name] for job in jobs])
        yield f"{kind}: {len(jobs)} jobs, {text}" + (f" ({sources})" if sources else "")
    if any(costs.values()):
        yield f"total: {len(costs)} jobs, {_describe_costs(list(costs.values()))}"
        yield from _longest_chain(graph, costs, gpus)


def _describe_costs(costs: Sequence[JobCost | None]) -> str:
    known = [one for one in costs if one is not None]
    if not known:
        return "unknown GPU-hours"
    devices: dict[str, float] = defaultdict(float)
    for one in known:
        devices[one.measured.device + (" (estimate)" if one.measured.estimate else "")] += one.gpu_hours
    text = f"{sum(devices.values()):,.1f} GPU-hours"
    each = [f"{hours:,.1f} on {device}" for device, hours in devices.items()]
    text += f": {' and '.join(each)}" if len(each) > 1 else f" on {next(iter(devices))}"
    return text + (f", {len(costs) - len(known)} unknown" if len(known) < len(costs) else "")


def _longest_chain(graph: Graph, costs: Mapping[str, JobCost | None], gpus: Mapping[str, int]) -> Iterator[str]:
    """The jobs that follow each other for the longest time, each on the GPUs that it gets."""
    hours: dict[str, float] = {}
    chains: dict[str, tuple[str, ...]] = {}
    for job in graph:  # in dependency order
        before = max(job.needs, key=lambda name: hours[name], default=None)
        cost = costs.get(job.name)
        hours[job.name] = (hours[before] if before else 0.0) + (cost.gpu_hours / gpus[job.name] if cost else 0.0)
        chains[job.name] = (chains[before] if before else ()) + ((job.name,) if job.name in costs else ())
    last = max(hours, key=lambda name: hours[name])
    jobs = [graph[name] for name in chains[last]]
    parts = [f"{job.kind} {job.task or ''}".strip() + ("" if costs[job.name] else " (unknown)") for job in jobs]
    shown = " → ".join(f"{part} on {gpus[job.name]} GPUs" for part, job in zip(parts, jobs, strict=True))
    yield f"longest chain: {format_hours(hours[last])} (h:mm), row {jobs[0].row_key}: {shown}, as `resources` says"


def plan_lines(
    graph: Graph,
    decisions: Decisions,
    store: Store,
    *,
    tools: Tools | None = None,
    step_times: Sequence[StepTime] = (),
    gpus: Mapping[str, int] | None = None,
    notes: str | None = None,
) -> Iterator[Text]:
    """The plan as a tree: every job below what it needs, with what would happen and why.

    Args:
        graph, decisions, store: the jobs, what would happen to each, and where.
        tools: show the jobs' command lines, too.
        step_times: for the GPU-hours at the end.
        gpus: how many each job gets; by default one.
        notes: the experiment's own.
    """
    from rich.text import Text

    counts = Counter(one.action for one in decisions.values())
    head = f"{graph.experiment} → {store.run_dir}: {len(decisions)} jobs, {counts['run']} to run, {counts['done']} done"
    head += f", {counts['queued']} in the queue" if counts["queued"] else ""
    yield Text(head + (f", {counts['skip']} not needed" if counts["skip"] else ""), style="bold")
    if notes:
        yield Text(printable(notes.strip()))
    tree = _PlanTree(graph, decisions, tools)
    for row in graph.rows:
        yield Text(printable(" ".join(row.label.split())))
        roots = [job for job in graph if job.row == row.key and _is_root(graph, job)]
        for job in roots:
            yield from tree.branch(job, "", job is roots[-1])
    for job in graph:
        if job.row is None:
            yield from tree.leaf(decisions[job.name], "")
    for line in cost_lines(graph, decisions, step_times, gpus or {job.name: 1 for job in graph}):
        yield Text(line, style="dim")


def _is_root(graph: Graph, job: Job) -> bool:
    """Whether a job is at the left of its row's tree: it needs nothing but the choice of a learning rate."""
    return not job.after_any and all(graph[need].after_any for need in job.needs)


class _PlanTree:
    def __init__(self, graph: Graph, decisions: Decisions, tools: Tools | None) -> None:
        self.graph, self.decisions, self.tools = graph, decisions, tools
        self.width = max(len(job.name) + 3 * self._depth(job) for job in graph) + 3

    def branch(self, job: Job, indent: str, is_last: bool) -> Iterator[Text]:
        yield from self.leaf(self.decisions[job.name], indent + ("└─ " if is_last else "├─ "))
        below = [user for user in self.graph.users(job.name) if not user.after_any]
        for user in below:
            yield from self.branch(user, indent + ("   " if is_last else "│  "), user is below[-1])

    def leaf(self, one: Decision, prefix: str) -> Iterator[Text]:
        from rich.text import Text

        word = one.status if one.action in ("done", "queued") else one.action
        why = printable(f" {one.why or _ended_at(one.state)}".rstrip())
        name = f"{prefix}{one.job.name}".ljust(self.width)
        yield Text.assemble(name, (f"{word:<9}", STYLES.get(word, "")), (why, "dim"))
        for words in one.job.commands(self.tools) if self.tools else ():
            yield Text(" " * len(prefix) + "  $ " + printable(redact_urls(shlex.join(words))), style="dim")

    def _depth(self, job: Job) -> int:
        needs = [self.graph[need] for need in job.needs] if not job.after_any else []
        return 1 + max((self._depth(need) for need in needs), default=0)


def _ended_at(state: JobState | None) -> str:
    if state is None or not state.ended:
        return ""
    at = datetime.fromisoformat(state.ended).astimezone()
    later = " (in the future: a clock is wrong)" if at.timestamp() > time.time() + CLOCK_SKEW else ""
    return f"{at:%Y-%m-%d %H:%M}{later}, took {_duration(state)}"


def _duration(state: JobState) -> str:
    """How long the last attempt took, or has run; clocks of two machines may disagree."""
    return clock(state.seconds) if state.seconds > -CLOCK_SKEW else "starts in the future: a clock is wrong"


def status_rows(graph: Graph, store: Store, snapshot: Snapshot, words: Sequence[str] = ()) -> list[list[str]]:
    """The heads, then a line for each job; attempts and GPU-hours only where a job has more than one, or any."""
    blocked, views, jobs = blocked_jobs(graph, snapshot), snapshot.views, select_jobs(graph, words)
    usage = {job.name: views[job.name].usage(snapshot.starts) for job in jobs}
    with_attempts = any(attempts > 1 for attempts, _ in usage.values())
    with_gpus = any(hours for _, hours in usage.values())
    heads = ["attempts"] * with_attempts + ["GPU-hours"] * with_gpus
    rows = [["job", "state", "progress", "time", "ETA", *heads, ""]]
    for job in jobs:
        *cells, note = _status_cells(views[job.name], store.folder(job), blocked.get(job.name))
        attempts, hours = usage[job.name]
        more = [str(attempts or "")] * with_attempts + [f"{hours:.2f}" if hours else ""] * with_gpus
        rows.append([job.name, *cells, *more, note])
    return [[printable(cell.replace("\n", " ")) for cell in row] for row in rows]


def _status_cells(view: JobView, folder: Path, blocked_by: str | None) -> list[str]:
    state, status = view.state, view.status
    if blocked_by and status == "cancelled":
        return [status, "", "", "", f"by Slurm: needs {blocked_by}, which has no result"]
    if blocked_by and status != "running":
        return ["blocked", "", "", "", f"waits for {blocked_by}, which has no result"]
    if view.damage and status == "damaged":
        return [status, "", "", "", f"{view.damage}; `retry` runs it again"]
    if status in ("queued", "unknown"):
        return [status, "", "", "", describe_queue(view) or describe_end(view)]
    if state is None:
        return [status, "", "", "", describe_end(view) or describe_queue(view)]
    progress = job_progress(view.job, folder, state)
    if status != "running":
        killed = "killed while it ran; submit again to continue" if status == "interrupted" else ""
        note = (progress.note if view.has_own_end else "") or describe_end(view) or killed or progress.note
        return [status, "", _duration(state) if state.ended else "", "", note]
    done = "" if progress.fraction is None else f"{progress.fraction:4.0%}"
    eta = "" if progress.eta is None else clock(progress.eta)
    return [status, done, _duration(state), eta, progress.note]


def superseded_lines(superseded: Sequence[JobView], experiment: str) -> Iterator[str]:
    """What still runs or waits for earlier settings of the file, and the command that ends it."""
    if superseded:
        ids = [f", Slurm job {view.submission.id}" if view.submission else "" for view in superseded]
        texts = [f"{view.job.name} ({view.status}{id_})" for view, id_ in zip(superseded, ids, strict=True)]
        yield f"{len(texts)} jobs of earlier settings still run or wait: {abbreviate(texts, 6)}"
        yield as_typed(f"python tools/launch.py cancel {shlex.quote(experiment)} --superseded   ends them")


def _status_title(graph: Graph, store: Store, snapshot: Snapshot, rows: Sequence[Sequence[str]]) -> str:
    counts = Counter(row[1] for row in rows).most_common()
    hours = sum(view.usage(snapshot.starts)[1] for view in snapshot.views.values())
    spent = f"; {hours:,.1f} GPU-hours so far" if hours else ""
    return f"{graph.experiment} → {store.run_dir}: " + ", ".join(f"{count} {word}" for word, count in counts) + spent


def status_lines(graph: Graph, store: Store, snapshot: Snapshot, words: Sequence[str] = ()) -> Iterator[str]:
    """The state of all jobs, or of those that the words name, as plain lines, nothing cut off."""
    rows = status_rows(graph, store, snapshot, words)
    yield _status_title(graph, store, snapshot, rows[1:])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def status_table(
    graph: Graph, store: Store, snapshot: Snapshot, height: int | None = None, words: Sequence[str] = ()
) -> Group:
    """The state of the jobs for a terminal.

    Args:
        graph, store, snapshot: the jobs and their state.
        words: name the jobs to show; empty: all.
        height: the terminal's lines; if all jobs do not fit, those that wait or are done are only counted.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    heads, *rows = status_rows(graph, store, snapshot, words)
    is_short = height is not None and len(rows) + 3 > height
    table = Table(box=None, pad_edge=False, header_style="dim", expand=True)
    for name in heads[:-1]:
        table.add_column(name, no_wrap=True)
    table.add_column(heads[-1], overflow="ellipsis", no_wrap=True, ratio=1)  # the rest of the line
    for name, word, *cells in rows:
        if not (is_short and word in COUNTED):
            table.add_row(name, Text(word, style=STYLES.get(word, "")), *cells)
    return Group(Text(_status_title(graph, store, snapshot, rows), style="bold"), table)


class LineReporter:
    """Reports a run with one line per event, and one line per running job every `every` seconds."""

    def __init__(self, console: Console, every: float = 30.0) -> None:
        self.console, self.every = console, every
        self.total = self.count = 0
        self.last = time.monotonic()
        self.plan: RunPlan | None = None

    def begin(self, plan: RunPlan, side_by_side: int) -> None:
        self.plan, self.total = plan, len(plan.to_run())
        name, where = plan.graph.experiment, plan.store.run_dir
        if self.total:
            how = f"{side_by_side} at a time" if side_by_side else "through the queue"
            self._print(f"{name}: {self.total} jobs to run, {how}, into {where}")
        else:
            self._print(f"{name}: nothing to run, every result is in {where}")
        no_flock = why_no_flock(where / SUBMIT_LOCK)
        if no_flock:
            how = f"files that name host and process lock it; a dead machine's are free after {SILENT_SECONDS:.0f} s"
            self._print(f"{where} is on a file system without flock ({no_flock}): {how}")

    def submitted(self, jobs: Sequence[Job], ids: Sequence[str], after: str) -> None:
        more = f" … {jobs[-1].name} ({len(jobs)} jobs)" if len(jobs) > 1 else ""
        shown = ids[0] if len(ids) == 1 else f"{ids[0].partition('_')[0]}_[0-{len(ids) - 1}]"
        self._print(f"submit  {jobs[0].name}{more} as {shown}" + (f", {after}" if after else ""))

    def no_room(self, left: Sequence[str], why: str) -> None:
        self._print(f"wait    {len(left)} jobs are left, such as {left[0]}: no room in the queue ({why})")

    def started(self, job: Job, state: JobState) -> None:
        attempt = f" (attempt {state.attempts})" if state.attempts > 1 else ""
        self._print(f"start   {job.name}{attempt}")

    def waiting(self, job: Job, state: JobState | None) -> None:
        who = f" (process {state.process.pid} on {state.process.host})" if state and state.process else ""
        self._print(f"wait    {job.name}: a process of an earlier submit still works on it{who}")

    def ended(self, job: Job, state: JobState) -> None:
        assert self.plan is not None
        self.count += 1
        note = job_progress(job, self.plan.store.folder(job), state).note
        tail = f" · {note}" if note else ""
        line = f"{state.status:<7} {job.name} in {clock(state.seconds)}{tail}  [{self.count}/{self.total}]"
        self._print(line, state.status)
        if state.status == "failed":
            self._print(f"        its log: {self.plan.store.log(job)}", state.status)

    def stopping(self, names: Sequence[str], grace: float) -> None:
        shown = abbreviate(names, 3) or "nothing runs"
        self._print(f"stopping: {shown} may save for {grace:.0f} s; Ctrl-C again kills at once", "cancelled")

    def blocked(self, job: Job, by: str) -> None:
        self.count += 1
        self._print(f"blocked {job.name}: needs {by}, which has no result  [{self.count}/{self.total}]", "blocked")

    def tick(self, running: Mapping[str, JobState]) -> None:
        if self.plan is not None and self._is_due():
            for name, state in running.items():
                job = self.plan.graph[name]
                progress = job_progress(job, self.plan.store.folder(job), state)
                done = "running" if progress.fraction is None else f"{progress.fraction:.0%}"
                eta = "" if progress.eta is None else f" · ETA {clock(progress.eta)}"
                note = f" · {progress.note}" if progress.note else ""
                self._print(f"        {name}: {done} after {clock(state.seconds)}{eta}{note}")

    def end(self) -> None:
        """Nothing to report."""

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now - self.last < self.every:
            return False
        self.last = now
        return True

    def _print(self, line: str, word: str = "") -> None:
        if is_quiet() and word not in ("failed", "diverged", "blocked", "cancelled"):
            return
        self.console.print(printable(line), style=STYLES.get(word, ""), soft_wrap=True, markup=False, highlight=False)


class LiveReporter(LineReporter):
    """Shows the table of all jobs, refreshed in place, with the lines of what happened above it."""

    def __init__(self, console: Console, every: float = 0.5) -> None:
        from rich.live import Live

        super().__init__(console, every)
        self.live = Live(console=console, auto_refresh=False, transient=True)

    def begin(self, plan: RunPlan, side_by_side: int) -> None:
        super().begin(plan, side_by_side)
        self.live.start()

    def tick(self, running: Mapping[str, JobState]) -> None:
        from rich.constrain import Constrain

        if self.plan is not None and self._is_due():
            graph, store = self.plan.graph, self.plan.store
            now = store.snapshot(graph, self.plan.snapshot)  # no new query: what runs here is not in Slurm's queue
            table = status_table(graph, store, now, self.console.height)
            self.live.update(Constrain(table, self.console.width - 2), refresh=True)  # room for the ^C that is echoed

    def end(self) -> None:
        self.live.stop()


def reporter_for(console: Console) -> LineReporter:
    return LiveReporter(console) if is_live(console.file) and not is_quiet() else LineReporter(console)
