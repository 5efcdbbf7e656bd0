"""What the verbs of the command line do, without printing: open an experiment, submit, retry and cancel jobs."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_transfer.errors import UserError, nearest
from ssl_transfer.files import describe_unreadable, open_input, read_json_object, remove_partial_files
from ssl_transfer.formats.graph import GRAPH_FILE
from ssl_transfer.formats.job import ProcessId
from ssl_transfer.locks import SUBMIT_LOCK, FileLock, is_local, read_holder, send_signal
from transfer.experiment.commands import Tools
from transfer.experiment.decide import Decisions, decide, jobs_to_retry, select
from transfer.experiment.executors import Executor, RunListener, RunOutcome, RunPlan
from transfer.experiment.fingerprints import ConfigReader, WeightDigests
from transfer.experiment.graph import Graph, read_graph, select_jobs
from transfer.experiment.load import ExperimentSource, absolute, config_path, load_experiment, run_dir_of
from transfer.experiment.local import DebugExecutor, LocalExecutor
from transfer.experiment.slurm.executor import ClusterExecutor
from transfer.experiment.slurm_queue import end_jobs
from transfer.experiment.spec import Experiment
from transfer.experiment.stages import build_graph
from transfer.experiment.store import JobView, Snapshot, Store
from transfer.report.published import LAYOUTS, load_expected
from transfer.tasks.task import OWN_SPLITS, TaskSettings, own_split_faults
from transfer.weights.download import ProgressCallback
from transfer.weights.public import PublicCheckpoint, checkpoint_file, find_entry
from transfer.weights.public import fetch as fetch_weights

EXECUTORS: Mapping[str, Callable[[], Executor]] = {
    "local": LocalExecutor,
    "debug": DebugExecutor,
    "slurm": ClusterExecutor,
}


@dataclass(frozen=True)
class OpenExperiment:
    """An experiment file that was read, checked and turned into a graph.

    Attributes:
        public_weights: the public checkpoints that rows name, by the row's key.
    """

    experiment: Experiment
    source: ExperimentSource
    graph: Graph
    store: Store
    tools: Tools
    digests: WeightDigests
    public_weights: Mapping[str, PublicCheckpoint]

    def problems(self) -> list[str]:
        """Why no job can start, one line each; empty if nothing is wrong."""
        return list(_problems(self.experiment, self.source))

    def data_problems(self, decisions: Decisions) -> list[str]:
        """What is wrong with the annotations of each task that will be trained on, one line a task.

        Published splits are left to their download, and images to the trials.
        """
        return list(_data_problems(self, decisions))

    def downloads(self) -> list[tuple[str, str]]:
        """The public checkpoints that are not downloaded, as (row's key, name)."""
        missing = [key for key, entry in self.public_weights.items() if not entry.file.exists()]
        return [(key, str(self.experiment.rows[key].weights)) for key in missing]

    def snapshot(self) -> Snapshot:
        return self.store.snapshot(self.graph)


def open_experiment(
    path: str,
    sets: Sequence[str] = (),
    tools: Tools | None = None,
    report_download: Callable[[str], ProgressCallback] | None = None,
) -> OpenExperiment:
    """Read and check an experiment; writes nothing to its run folder.

    Args:
        path: the experiment file.
        sets: the `--set` words.
        tools: make the jobs' command lines; by default the checkout's tools.
        report_download: given a public checkpoint's name, returns the progress callback of its download. If given, the
            ones that rows name are downloaded here, on the submitting machine, not in a job.

    Raises:
        UserError: a mistake in the file, a file that it names does not exist, or a download failed.
    """
    tools = tools or Tools()
    experiment, source = load_experiment(path, sets)
    found = {key: find_entry(row.weights) for key, row in experiment.rows.items() if row.weights}
    public = {key: entry for key, entry in found.items() if entry is not None}
    _check_files(experiment, source, tools, public)
    for key, entry in public.items():
        if report_download is not None and not (entry.file.exists() and entry.record.exists()):
            fetch_weights(entry, report_download(str(experiment.rows[key].weights)))
    run_dir = run_dir_of(experiment)
    digests = WeightDigests(run_dir)
    graph = build_graph(experiment, source, digests=digests, public_weights=public)
    return OpenExperiment(
        experiment, source, graph, Store(run_dir), tools=tools, digests=digests, public_weights=public
    )


def open_submitted(path: str, sets: Sequence[str] = ()) -> tuple[Graph, Store, bool]:
    """What was last submitted, from the run folder alone, and whether the experiment file is still the same.

    Raises:
        UserError: a mistake in the file, or nothing was submitted yet.
    """
    experiment, source = load_experiment(path, sets)
    run_dir = run_dir_of(experiment)
    graph = read_graph(run_dir)
    return graph, Store(run_dir), graph.source in (source.text, source.original)


def submit(
    opened: OpenExperiment,
    executor: Executor,
    listener: RunListener,
    retry: Sequence[str] | None = None,
    may_cancel: Callable[[Sequence[JobView]], bool] = lambda _: False,
) -> RunOutcome:
    """Write the graph and run what has no result, as the only submit in the run folder.

    Args:
        opened, executor, listener: what to run, how, and who shows it.
        retry: run only the jobs that these words name (all that failed, were cancelled or killed, if empty), what they
            need and what follows from them; None: everything.
        may_cancel: called with what still runs or waits for earlier settings; whether to cancel it.

    Raises:
        UserError: a job could not start, or another submit works in the run folder; nothing was written.
    """
    for problem in opened.problems():
        raise UserError(problem)
    for key, name in opened.downloads():
        remedy = f"where there is a network: python tools/convert.py --inspect {name}"
        raise UserError(f"{opened.source.path}: rows.{key}.weights: {name} is not downloaded; {remedy}")
    with _submit_lock(opened.store.run_dir):
        plan = _plan_run(opened, retry)
        refusal = executor.refusal(opened.experiment, plan.decisions)
        for problem in [refusal] if refusal else opened.data_problems(plan.decisions):
            raise UserError(problem)
        old = superseded_jobs(opened.store, plan.snapshot, in_queue=executor.name == "slurm" or None)
        if old and may_cancel(old):
            cancel_jobs(old, opened.store)
        remove_partial_files(opened.store.run_dir, [GRAPH_FILE])
        opened.graph.write(opened.store.run_dir, opened.tools)
        opened.digests.save()
        return executor.run(plan, listener)


def dry_run(opened: OpenExperiment, executor: Executor, retry: Sequence[str] | None = None) -> Iterator[str]:
    """What `submit` would start: batch scripts or command lines. Writes nothing and locks nothing.

    Raises:
        UserError: a job could not start, or a named job cannot be retried.
    """
    for problem in opened.problems():
        raise UserError(problem)
    return executor.dry_run(_plan_run(opened, retry))


def _plan_run(opened: OpenExperiment, retry: Sequence[str] | None) -> RunPlan:
    graph, snapshot = opened.graph, opened.snapshot()
    decisions: Decisions = decide(graph, snapshot)
    if retry is not None:
        decisions = select(decisions, graph, jobs_to_retry(graph, snapshot, retry))
    return RunPlan(
        experiment=opened.experiment,
        graph=graph,
        decisions=decisions,
        store=opened.store,
        tools=opened.tools,
        snapshot=snapshot,
    )


@contextlib.contextmanager
def _submit_lock(run_dir: Path) -> Iterator[None]:
    """Hold the run folder's lock; a folder that only the lock created is removed again after an error.

    Raises:
        UserError: another process holds it.
    """
    created = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    lock = FileLock(run_dir / SUBMIT_LOCK)
    if not lock.acquire():
        holder = submitter(run_dir)
        who = f" (process {holder.pid} on {holder.host})" if holder else ""
        advice = "wait for it, watch it with `status --watch`, or `cancel` it"
        raise UserError(f"another submit{who} is working in {run_dir}; {advice}")
    with lock:
        try:
            yield
        except UserError:
            if created and run_dir.is_dir() and set(run_dir.iterdir()) <= lock.files:
                for file in lock.files:
                    file.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    for folder in created:
                        folder.rmdir()
            raise


def submitter(run_dir: Path) -> ProcessId | None:
    """The process that holds the run folder's lock; None if it is free."""
    return read_holder(run_dir / SUBMIT_LOCK)


def cancel(graph: Graph, store: Store, words: Sequence[str], superseded: bool = False) -> list[str]:
    """Ask running jobs to save a checkpoint and exit, and remove pending ones from the queue.

    Args:
        graph, store: what was submitted.
        words: name the jobs to cancel (`select_jobs`); empty: all of them, and what they superseded.
        superseded: only jobs of earlier settings, and of folders that were deleted.

    Returns:
        What was cancelled, as text.

    Raises:
        UserError: no named job runs, or one runs on another host.
    """
    snapshot = store.snapshot(graph)
    if superseded:
        old = superseded_jobs(store, snapshot, in_queue=True)
        return cancel_jobs(_named(old, words) if old else [], store)
    if words:
        jobs = select_jobs(graph, words)
        cancelled = cancel_jobs([snapshot.views[job.name] for job in jobs], store)
        if not cancelled:
            subject = f"{jobs[0].name} is not" if len(jobs) == 1 else f"none of {len(jobs)} jobs is"
            raise UserError(f"{subject} running or in the queue; `status` shows what is")
        return cancelled
    holder = submitter(store.run_dir)
    if holder is not None and not is_local(holder):
        raise UserError(f"the submit runs on {holder.host}; run `cancel` there")
    if holder is not None and send_signal(holder, signal.SIGTERM):
        return [f"the submit (process {holder.pid})"]
    return cancel_jobs([*snapshot.views.values(), *superseded_jobs(store, snapshot)], store)


def superseded_jobs(store: Store, snapshot: Snapshot, in_queue: bool | None = None) -> list[JobView]:
    """What still runs or waits for earlier settings.

    `in_queue`: also what Slurm's queue has for folders that were deleted; by default if jobs were submitted to Slurm.
    """
    if in_queue is None:
        in_queue = any(view.submission for view in (*snapshot.views.values(), *snapshot.superseded))
    unnamed = store.unnamed(snapshot) if in_queue and shutil.which("squeue") else []
    return [*snapshot.superseded, *unnamed]


def cancel_deleted(path: str, sets: Sequence[str], words: Sequence[str]) -> list[str]:
    """If the run folder was deleted, cancel the named jobs, or all, that Slurm's queue has of it; their texts.

    Raises:
        UserError: a mistake in the file, or a word names none of them.
    """
    run_dir, views = run_dir_of(load_experiment(path, sets)[0]), []
    if not (run_dir / GRAPH_FILE).exists():
        with contextlib.suppress(UserError):  # no queue here
            views = Store(run_dir).unnamed(Snapshot())
    return cancel_jobs(_named(views, words) if views else [], Store(run_dir))


def _named(views: Sequence[JobView], words: Sequence[str]) -> list[JobView]:
    names = {job.name for job in select_jobs([view.job for view in views], words)}
    return [view for view in views if view.job.name in names]


def cancel_jobs(views: Sequence[JobView], store: Store) -> list[str]:
    """Cancel those of the jobs that run or wait; what was cancelled, as text.

    Raises:
        UserError: one runs on another host, or Slurm's controller does not answer.
    """
    queued = [(view, entry) for view in views if (entry := view.queue_entry) is not None and view.is_active]
    others = [view for view in views if view.queue_entry is None or not view.is_active]
    for view, _ in queued:
        if view.state is not None:
            store.request_cancel(view.job, view.state)
    # Users first: what would start when its inputs end, in whatever way, must leave the queue before they do.
    end_jobs(entry for view, entry in reversed(queued) if view.job.after_any and entry.is_pending)
    end_jobs(entry for view, entry in reversed(queued) if not (view.job.after_any and entry.is_pending))
    stopped = [text for view in reversed(others) if (text := _stop_process(view, store))]
    return [*(f"{view.job.name} (Slurm job {entry.id})" for view, entry in queued), *reversed(stopped)]


def _stop_process(view: JobView, store: Store) -> str | None:
    job, state = view.job, view.state
    if state is None or not view.is_locked or state.process is None:
        return None
    if not is_local(state.process):
        raise UserError(f"{job.name} runs on {state.process.host}; run `cancel` there")
    store.request_cancel(job, state)
    has_ended = not send_signal(state.process, signal.SIGTERM)  # since the snapshot
    return None if has_ended else f"{job.name} (process {state.process.pid})"


def _check_files(
    experiment: Experiment, source: ExperimentSource, tools: Tools, public: Mapping[str, PublicCheckpoint]
) -> None:
    """Check that all files that a plan reads exist: config files, the overlay, checkpoints, the tools.

    Raises:
        UserError: one is missing; names the experiment file and its key.
    """
    for key, name, folder in _named_files(experiment, public):
        file = absolute(name) if folder else checkpoint_file(absolute(name))
        try:
            open_input(config_path(name, folder) if folder else file).close()
        except OSError as error:
            advice = "write a path from the current folder"
            raise UserError(f"{source.path}: {key}: {describe_unreadable(file, error)}; {advice}") from error
        except UserError as error:
            raise UserError(f"{source.path}: {key}: {error}") from error
    published = [name for layout in LAYOUTS for name in load_expected(layout).row_by_key]
    for row, spec in experiment.rows.items():
        if spec.expected is not None and spec.expected not in published:
            reason = f"no published row is called {spec.expected!r}; {nearest(spec.expected, published)}"
            raise UserError(f"{source.path}: rows.{row}.expected: {reason}")
    for key, root in _data_roots(experiment):
        if root is None:
            raise UserError(f"{source.path}: {key} is not given; add it to the file or pass --set {key}=DIR")
    names = ["pretrain", "convert", "transfer", "table"]
    names += ["evaluate"] if experiment.evaluations else []
    names += ["lr_search"] if experiment.lr_search else []
    for name in names:
        if not (tools.folder / f"{name}.py").is_file():
            raise UserError(f"{tools.folder / name}.py is missing; this checkout is not complete")


def _problems(experiment: Experiment, source: ExperimentSource) -> Iterator[str]:
    for key, root in _data_roots(experiment):
        if root is not None and not root.is_dir():
            yield f"{source.path}: {key}: {root} is not a folder; make it, or give another with --set {key}=DIR"
    run_dir = run_dir_of(experiment)
    existing = next(folder for folder in (run_dir, *run_dir.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield f"{source.path}: run_dir: {run_dir} cannot be written; give another with --set run_dir=DIR"
    elif (run_dir / GRAPH_FILE).exists():
        owner = read_json_object(run_dir / GRAPH_FILE).get("experiment")
        if owner != experiment.name:
            reason = f"{run_dir} belongs to experiment {owner!r}"
            yield f"{source.path}: run_dir: {reason}; give another with --set run_dir=DIR"


def _data_problems(opened: OpenExperiment, decisions: Decisions) -> Iterator[str]:
    experiment = opened.experiment
    jobs = [one.job for one in decisions.values() if one.action == "run"]
    wanted = {(job.row_key, job.task) for job in jobs if job.kind in ("search", "finetune")}
    reader = ConfigReader(config_path(experiment.overlay, "overlays") if experiment.overlay else None)
    root = absolute(experiment.data.detection or "")
    checked: set[TaskSettings] = set()
    for (row_key, row), (key, task) in itertools.product(experiment.rows.items(), experiment.tasks.items()):
        if (row_key, key) not in wanted:
            continue
        config = config_path(task.config, "transfer")
        values = reader.resolved(config, "transfer", {**task.overrides, **row.finetune})
        if not any(name.startswith(OWN_SPLITS) for name in values):
            continue
        where = f"{opened.source.path}: tasks.{key}"
        try:
            settings = TaskSettings.of(values, root, str(config))
        except UserError as error:
            yield f"{where}: {error}"
            continue
        faults = own_split_faults(settings) if settings not in checked else []
        checked.add(settings)
        if faults:
            more = f"; {len(faults) - 1} more: python tools/data.py check --config-file {config} {root}"
            yield f"{where}: {faults[0]}{more if len(faults) > 1 else ''}"


def _named_files(experiment: Experiment, public: Mapping[str, PublicCheckpoint]) -> Iterator[tuple[str, str, str]]:
    """Key and name of each file that the experiment names, and the folder of configs/ that may hold it."""
    if experiment.overlay:
        yield "overlay", experiment.overlay, "overlays"
    for key, row in experiment.rows.items():
        if row.pretrain:
            yield f"rows.{key}.pretrain.config", row.pretrain.config, "pretrain"
        if row.weights and key not in public:
            yield f"rows.{key}.weights", row.weights, ""
    for key, task in experiment.tasks.items():
        yield f"tasks.{key}.config", task.config, "transfer"
    for key, evaluation in experiment.evaluations.items():
        if evaluation.config:
            yield f"evaluations.{key}.config", evaluation.config, "evaluation"


def _data_roots(experiment: Experiment) -> Iterator[tuple[str, Path | None]]:
    data = experiment.data
    if experiment.evaluations or any(row.pretrain for row in experiment.rows.values()):
        yield "data.images", absolute(data.images) if data.images else None
    if experiment.tasks:
        yield "data.detection", absolute(data.detection) if data.detection else None
