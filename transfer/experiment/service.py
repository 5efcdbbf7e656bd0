"""What the command line's verbs do, without printing: open an experiment, submit, cancel, find jobs to retry."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import UserError
from transfer.experiment import preflight, processes
from transfer.experiment.build import build, run_dir_of
from transfer.experiment.commands import Tools
from transfer.experiment.debug import Debug
from transfer.experiment.decide import Decision, decide, select
from transfer.experiment.digests import Digests
from transfer.experiment.executors import Executor, Listener, Outcome, Work
from transfer.experiment.graph import Graph, Job, read_graph
from transfer.experiment.load import Source, load
from transfer.experiment.local import Local
from transfer.experiment.locks import FileLock, is_held
from transfer.experiment.processes import Process
from transfer.experiment.slurm.cancel import cancel_filed
from transfer.experiment.slurm.executor import Slurm
from transfer.experiment.spec import Experiment
from transfer.experiment.store import Store
from transfer.weights import zoo
from transfer.weights.download import ProgressCallback

EXECUTORS: dict[str, Callable[[], Executor]] = {Local.name: Local, Debug.name: Debug, Slurm.name: Slurm}
SUBMIT_LOCK = "submit.lock"


@dataclass(frozen=True)
class Opened:
    """An experiment file that was read, checked and turned into a graph.

    Attributes:
        experiment: the settings.
        source: where they came from.
        graph: the jobs.
        store: the run folder.
        digests: what is known of weights files.
    """

    experiment: Experiment
    source: Source
    graph: Graph
    store: Store
    digests: Digests

    def problems(self) -> list[str]:
        """Why no job can start, one line each; empty when all is well."""
        return list(preflight.problems(self.experiment, self.source))

    def downloads(self) -> list[tuple[str, str]]:
        """The zoo's checkpoints that are not here yet, as (row's key, `zoo:NAME`)."""
        return list(preflight.downloads(self.experiment))

    def decisions(self) -> dict[str, Decision]:
        """What would run, and why, by what lies on disk and what the cluster's queue says now."""
        return decide(self.graph, self.store.asked(self.graph))


def open_experiment(path: str, sets: Sequence[str] = (), tools: Tools | None = None) -> Opened:
    """Read and check an experiment; writes nothing.

    Raises:
        UserError: a mistake in the file, or a file that it names is not there.
    """
    tools = tools or Tools()
    experiment, source = load(path, sets)
    preflight.check_files(experiment, source, tools)
    run_dir = run_dir_of(experiment)
    digests = Digests(run_dir)
    return Opened(experiment, source, build(experiment, source, tools, digests), Store(run_dir), digests)


def download_weights(path: str, sets: Sequence[str], report: Callable[[str], ProgressCallback]) -> None:
    """Download the zoo's checkpoints that an experiment names: here, on the submitting side, not in a job.

    Args:
        path, sets: as in `open_experiment`.
        report: given `zoo:NAME`, makes what is told of that download's progress.

    Raises:
        UserError: no such name, no network, or bytes that are not the published ones; nothing of it is kept.
    """
    experiment, _ = load(path, sets)
    for row in experiment.rows.values():
        entry = zoo.find_entry(row.weights or "")
        if entry is not None and not entry.file.exists():
            zoo.fetch(entry, report(str(row.weights)))


def submitted(path: str, sets: Sequence[str] = ()) -> tuple[Graph, Store, bool]:
    """What was last submitted of an experiment, from its run folder alone.

    Returns:
        The graph, the run folder, and whether the experiment file still reads as it did then.

    Raises:
        UserError: the file is wrong, or nothing was submitted yet.
    """
    experiment, source = load(path, sets)
    run_dir = run_dir_of(experiment)
    graph = read_graph(run_dir)
    return graph, Store(run_dir), graph.source == source.text


def submit(opened: Opened, executor: Executor, listener: Listener, names: Sequence[str] | None = None) -> Outcome:
    """Write the graph and run what is missing, alone in the run folder.

    Args:
        opened: the experiment.
        executor: who runs it.
        listener: is told what happens.
        names: run only these jobs, what they need and what follows from them; everything when None.

    Raises:
        UserError: a job could not start, or somebody else is submitting to the run folder; nothing was written.
    """
    for problem in opened.problems():
        raise UserError(problem)
    for key, name in opened.downloads():
        mend = f"where there is a network: python tools/convert.py --inspect {name}"
        raise UserError(f"{opened.source.path}: rows.{key}.weights: {name} is not downloaded; {mend}")
    refusal = executor.refusal(opened.experiment, opened.decisions())
    if refusal:
        raise UserError(refusal)
    with _alone(opened.store.run_dir):
        opened.graph.write(opened.store.run_dir)
        opened.digests.save()
        store = opened.store.asked(opened.graph)  # anew: another submit may have filed jobs meanwhile
        decisions = decide(opened.graph, store)
        if names is not None:
            decisions = select(decisions, opened.graph, names)
        return executor.run(Work(opened.experiment, opened.graph, decisions, store), listener)


def _alone(run_dir: Path) -> FileLock:
    """The run folder's lock, taken.

    Raises:
        UserError: another process has it.
    """
    lock = FileLock(run_dir / SUBMIT_LOCK)
    if not lock.acquire():
        holder = submitter(run_dir)
        who = f" (process {holder.pid} on {holder.host})" if holder else ""
        advice = "wait for it, watch it with `status --watch`, or `cancel` it"
        raise UserError(f"another submit{who} is working in {run_dir}; {advice}")
    lock.note(json.dumps(asdict(processes.this())))
    return lock


def submitter(run_dir: Path) -> Process | None:
    """The process that holds the run folder's lock; None when nobody does."""
    if not is_held(run_dir / SUBMIT_LOCK):
        return None
    try:
        return Process(**json.loads((run_dir / SUBMIT_LOCK).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def to_retry(graph: Graph, store: Store, names: Sequence[str]) -> list[str]:
    """The jobs `retry` runs: the named ones, or all that failed, were cancelled or interrupted.

    Raises:
        UserError: a named job has its result already, or there is no such job.
    """
    store = store.asked(graph)
    states = {job.name: store.status(job, store.read(job)) for job in graph}
    for name in names:
        if states[graph[name].name] == "done":
            raise UserError(f"{name} is done; there is nothing to retry")
        if states[name] == "diverged":
            raise UserError(f"{name} has diverged, which is a result; change its settings and submit instead")
    return list(names) or [name for name, word in states.items() if word in ("failed", "cancelled", "interrupted")]


def cancel(graph: Graph, store: Store, names: Sequence[str]) -> list[str]:
    """Ask running jobs to checkpoint and leave, take waiting ones out of the queue; without names, everything.

    Returns:
        What was asked to leave, in words.

    Raises:
        UserError: a named job does not run, or runs on another host.
    """
    store = store.asked(graph)
    if names:
        return [_cancel_named(graph[name], store) for name in names]
    holder = submitter(store.run_dir)
    if holder is not None:
        if not holder.signal(signal.SIGTERM):
            raise UserError(f"the submit runs on {holder.host}; ask for `cancel` there")
        return [f"the submit (process {holder.pid})"]
    # Users first: what waits for a job must be gone before that job is.
    told = [_cancel_job(job, store) for job in reversed(list(graph))]
    return [words for words in reversed(told) if words]


def _cancel_named(job: Job, store: Store) -> str:
    words = _cancel_job(job, store)
    if words is None:
        raise UserError(f"{job.name} is not running; `status` shows what is")
    return words


def _cancel_job(job: Job, store: Store) -> str | None:
    """Ask a job to leave; None where it does not run, or ended just now."""
    state, entry = store.read(job), store.entry(job)
    if entry is not None and store.status(job, state) in ("running", "queued"):
        if state is not None:
            store.request_cancel(job, state)
        return cancel_filed(job, entry)
    if state is None or not store.lives(job) or state.process is None:
        return None
    store.request_cancel(job, state)
    if not state.process.signal(signal.SIGTERM):
        raise UserError(f"{job.name} runs on {state.process.host}; ask for `cancel` there")
    return f"{job.name} (process {state.process.pid})"
