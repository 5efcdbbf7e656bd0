"""`--cluster slurm`: submits the graph with sbatch through submitit, as arrays of trials with dependencies."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shlex
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import environment
from common.errors import UserError, nearest
from common.formats.job import SlurmSubmission, utc_now
from transfer.experiment.decide import Decision, Decisions
from transfer.experiment.executors import Executor, RunListener, RunOutcome, RunPlan, job_environment
from transfer.experiment.graph import Job
from transfer.experiment.load import read_site, run_dir_of
from transfer.experiment.slurm.job_processes import SlurmTask
from transfer.experiment.slurm.staging import copy_code
from transfer.experiment.slurm_queue import run_slurm
from transfer.experiment.spec import Experiment, Resources, SiteConfig, StageResources, resources_for

FOLDER = "slurm"
"""Below the run folder: submission files, pickles and the output of Slurm and submitit themselves."""
ARRAY_SUFFIXES = {"finetune": ".s", "search": ".lr"}
"""Kinds whose jobs of one row and task form an array, and what begins the part in which their names differ."""


@dataclass(frozen=True)
class SbatchRequest:
    """One job, or an array of jobs with the same resources.

    Attributes:
        name: what squeue shows.
        resources: what each gets.
        folders: the jobs' folders, in the array's order.
        dependency: sbatch's `--dependency`; empty if it waits for nothing.
        requeues: how often each may be requeued.
        parallelism: how many of an array run at a time.
        python: the interpreter that submits them and writes down how they ended.
        code: the checkout that runs.
    """

    name: str
    resources: Resources
    folders: Sequence[Path] = ()
    dependency: str = ""
    requeues: int = 0
    parallelism: int = 1
    python: str = sys.executable
    code: Path = environment.ROOT


@dataclass(frozen=True)
class JobArray:
    """Jobs that are submitted together: the trials of a row on a task, the candidates of a search, or one job.

    Attributes:
        jobs: the jobs; they need the same jobs.
        waits_for: of those, the ones that have no result yet.
        queued: the Slurm ids of those that are in the queue already.
    """

    jobs: Sequence[Job]
    waits_for: Sequence[str]
    queued: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        first = self.jobs[0]
        return first.name if len(self.jobs) == 1 else first.name.rsplit(ARRAY_SUFFIXES[first.kind], 1)[0]

    def dependency(self, submitted: Mapping[str, str]) -> str:
        ids = {**self.queued, **submitted}
        needed = [ids[name] for name in self.waits_for if name in ids]
        if not needed:
            return ""
        if self.jobs[0].after_any:
            needed = [id_.partition("_")[0] for id_ in needed]  # the id of an array stands for all its jobs
            return f"afterany:{':'.join(dict.fromkeys(needed))}"
        return f"afterok:{':'.join(dict.fromkeys(needed))}"


def job_arrays(plan: RunPlan) -> Iterator[JobArray]:
    """The jobs to run, those that can form an array together, each array after those it needs."""
    decisions = plan.decisions
    queued = {
        name: one.view.submission.id
        for name, one in decisions.items()
        if one.action == "queued" and one.view.submission is not None
    }
    to_run = [job for job in plan.graph if job.name in decisions and decisions[job.name].action == "run"]
    unfinished = {job.name for job in to_run} | set(queued)
    found: dict[tuple[object, ...], list[Job]] = {}
    for job in to_run:
        key = (job.kind, job.row, job.task, job.needs) if job.kind in ARRAY_SUFFIXES else (job.name,)
        found.setdefault(key, []).append(job)
    for jobs in found.values():
        yield JobArray(jobs, [need for need in jobs[0].needs if need in unfinished], queued)


class ClusterExecutor(Executor):
    """Submits jobs to Slurm and returns.

    Args:
        site: what applies to this cluster; by default the user's site file.
    """

    name = "slurm"

    def __init__(self, site: SiteConfig | None = None) -> None:
        self.site = site or read_site()

    def refusal(self, experiment: Experiment, decisions: Decisions) -> str | None:
        """No Slurm, a queue that does not answer, or resources that this cluster does not have."""
        absent = [name for name in ("sbatch", "squeue", "srun", "scancel") if shutil.which(name) is None]
        if absent:
            advice = "run this on a login node of a cluster, or use --cluster local"
            return f"no {', '.join(absent)} on this machine; {advice}"
        unknown = [one for one in decisions.values() if one.status == "unknown"]
        if unknown:
            return unknown[0].why
        if "%" in str(run_dir := run_dir_of(experiment)):
            return f"run_dir: Slurm replaces the % in {run_dir}; give another with --set run_dir=DIR"
        requested = {}
        for job in (one.job for one in decisions.values() if one.action == "run"):
            row = experiment.rows[job.row_key] if job.row_key is not None else None
            of_row = row is not None and row.resources != StageResources()
            key = f"rows.{job.row_key}.resources.{job.kind}" if of_row else f"resources.{job.kind}"
            requested[key] = self.resources(job, experiment)
        return refused_by_sbatch(requested)

    def run(self, plan: RunPlan, listener: RunListener) -> RunOutcome:
        """Submit what is to run, in the graph's order, each job once the jobs that it needs have an id.

        Raises:
            UserError: sbatch refused a job; what was submitted before stays, and another submit adds the rest.
        """
        outcome = RunOutcome(already_queued=sum(one.action == "queued" for one in plan.decisions.values()))
        listener.begin(plan, 0)
        code = copy_code(plan.store.run_dir) if plan.experiment.slurm.snapshot and plan.to_run() else None
        try:
            for array in job_arrays(plan):
                dependency = array.dependency(outcome.submitted)
                ids = self._submit(array, plan, dependency, code)
                outcome.submitted.update(zip((job.name for job in array.jobs), ids, strict=True))
                listener.submitted(array.jobs, ids, _describe_dependency(dependency))
        finally:
            listener.end()
        return outcome

    def resources(self, job: Job, experiment: Experiment) -> Resources:
        """What a job gets: by the site, the experiment and its row."""
        layers = [self.site.resources, experiment.resources]
        if job.row_key is not None:
            layers.append(experiment.rows[job.row_key].resources)
        return resources_for(job.kind, layers)

    def _submit(self, array: JobArray, plan: RunPlan, dependency: str, code: Path | None) -> list[str]:
        settings, store = plan.experiment.slurm, plan.store
        decisions = [plan.decisions[job.name] for job in array.jobs]
        for one in decisions:
            _remove_from_queue(one)
        resources = self.resources(array.jobs[0], plan.experiment)
        request = SbatchRequest(
            f"{plan.graph.experiment}.{array.name}",
            resources,
            [store.folder(job) for job in array.jobs],
            dependency,
            settings.requeues,
            settings.array_parallelism,
            code=code or environment.ROOT,
        )
        if resources.environment or plan.experiment.environment:  # its scripts and pickles hold their values
            folder = store.run_dir / FOLDER
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        ids = submit_to_slurm(request, store.run_dir / FOLDER, _tasks(array, plan, resources, code))
        for one, id_ in zip(decisions, ids, strict=True):
            submission = SlurmSubmission(
                id=id_,
                at=utc_now(),
                attempt=one.state.attempts if one.state else 0,
                requeues=settings.requeues,
                name=one.job.name,
                fingerprint=one.job.fingerprint,
            )
            submission.write_to(store.folder(one.job))
        return ids


def _tasks(array: JobArray, plan: RunPlan, resources: Resources, code: Path | None) -> list[SlurmTask]:
    experiment = plan.experiment
    # Slurm gives a job its cores: as many threads as cores, unless a file says otherwise.
    variables = {"OMP_NUM_THREADS": str(resources.cpus or 1)}
    variables |= {k: v for k, v in job_environment(experiment).items() if k != "OMP_NUM_THREADS"}
    variables |= {**resources.environment, **experiment.environment}
    return [
        SlurmTask(
            run_dir=str(plan.store.run_dir),
            job=job,
            tools=plan.tools.with_code(code),
            environment=variables,
            max_resumes=experiment.max_resumes,
            requeues=experiment.slurm.requeues,
            grace=0.75 * (resources.signal_seconds or 60),
            gpus=(resources.nodes or 1) * (resources.gpus or 0),
            copy_data_to=resources.copy_data_to,
        )
        for job in array.jobs
    ]


def _remove_from_queue(one: Decision) -> None:
    """Cancel a pending Slurm job of the job: it is submitted again, to wait for more inputs."""
    if one.view.submission is not None and one.view.queue_entry is not None and one.view.queue_entry.is_pending:
        run_slurm(["scancel", one.view.submission.id])


def _describe_dependency(dependency: str) -> str:
    text = dependency.replace("afterok:", "after ").replace("afterany:", "after the end of ")
    return text.replace(":", ", ")


def submit_to_slurm(request: SbatchRequest, folder: Path, tasks: Sequence[Callable[[], object]]) -> list[str]:
    """Submit one job, or an array of several; the Slurm ids, in order.

    Raises:
        UserError: sbatch refused.
    """
    executor = make_submitit_executor(request, folder)
    from submitit.core.utils import FailedJobError

    try:
        with _clean_environment(), executor.batch():
            jobs = [executor.submit(task) for task in tasks]
    except FailedJobError as error:
        said = " ".join(str(error).replace("sbatch: error:", "").split())[:300]
        remedy = "correct it and submit again: what is submitted stays"
        raise UserError(f"sbatch refused {request.name}: {said}; {remedy}") from error
    return [str(job.job_id) for job in jobs]


def make_submitit_executor(request: SbatchRequest, folder: Path) -> Any:
    logging.getLogger("submitit").setLevel(logging.CRITICAL)  # its errors are reported in one line
    import submitit

    resources = request.resources
    python = shlex.quote(resources.python or request.python)
    python = f"{resources.container} {python}" if resources.container else python
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The job itself counts its requeues, by the reason of each.
        executor = submitit.SlurmExecutor(folder, max_num_timeout=10**6, python=python)
        executor.update_parameters(**sbatch_parameters(request))
    return executor


@contextlib.contextmanager
def _clean_environment() -> Iterator[None]:
    """submitit's `clean_env`, except for the variables that name the cluster or are options of sbatch."""
    from submitit.helpers import clean_env

    names = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")
    kept = {name: value for name, value in os.environ.items() if name in names or name.startswith("SBATCH_")}
    with clean_env():
        os.environ.update(kept)
        yield


def sbatch_parameters(request: SbatchRequest) -> dict[str, Any]:
    """submitit's parameters.

    `gpus_per_node` without gres; `--kill-on-invalid-dep` with a dependency, so that jobs behind a failed one do not
    wait indefinitely; `--kill-on-bad-exit`, because the other processes would wait for one that died.
    """
    resources = request.resources
    extra: dict[str, Any] = {"requeue": True, **resources.sbatch}
    if request.dependency:
        extra = {"kill-on-invalid-dep": "yes", **extra}
    found: dict[str, Any] = {
        "job_name": request.name,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "cpus_per_task": resources.cpus,
        "mem": None if resources.memory_gb is None else f"{math.ceil(resources.memory_gb * 1024)}M",
        "time": math.ceil((resources.hours or 1) * 60),
        "signal_delay_s": resources.signal_seconds,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "gres": resources.gres,
        "gpus_per_node": resources.gpus if resources.gpus and not resources.gres else None,
        "dependency": request.dependency or None,
        "array_parallelism": request.parallelism,
        "additional_parameters": extra,
        "setup": _setup(request),
        "teardown": _teardown(request) if request.folders else None,
        # Since 22.05 srun does not take over sbatch's number of CPUs.
        "srun_args": ["--kill-on-bad-exit=1", *([f"--cpus-per-task={resources.cpus}"] if resources.cpus else [])],
    }
    return {"wckey": None, **{key: value for key, value in found.items() if value is not None}}


def _setup(request: SbatchRequest) -> list[str]:
    lines = [f"export PYTHONPATH={shlex.quote(str(request.code))}${{PYTHONPATH:+:$PYTHONPATH}}"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in request.resources.environment.items()]
    return [*request.resources.setup, *lines]


def _teardown(request: SbatchRequest) -> list[str]:
    """Writes down how the job ended: if a process was killed, only the batch script is left to do so."""
    words = [request.python, "-m", "transfer.experiment.slurm.job_processes", "--requeues", str(request.requeues)]
    return [f'code=$?; {shlex.join(words)} --code "$code" {shlex.join(map(str, request.folders))}']


def refused_by_sbatch(requested: Mapping[str, Resources]) -> str | None:
    """Why sbatch would refuse a job, for the first such stage; None if it accepts them all. Submits nothing.

    Args:
        requested: the resources of each stage, by the config key that requests them.
    """
    tried: list[Resources] = []
    for key, resources in requested.items():
        if resources in tried:
            continue
        tried.append(resources)
        said = _test_submission(resources)
        if said is not None:
            return f"{key}: sbatch refuses: {said}{_suggest_partition(said, resources)}"
    return None


def _test_submission(resources: Resources) -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        executor = make_submitit_executor(SbatchRequest("check", resources), Path(folder))
        script = Path(folder) / "check.sh"
        script.write_text(executor._make_submission_file_text("true", "check"))
        done = run_slurm(["sbatch", "--test-only", str(script)])
    if done.returncode == 0:
        return None
    lines = [line.replace("sbatch: error: ", "").strip() for line in done.stderr.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines))[:300] or f"exit code {done.returncode}"


def _suggest_partition(said: str, resources: Resources) -> str:
    if resources.partition is None or "partition" not in said.lower():
        return ""
    known = run_slurm(["sinfo", "--noheader", "--format=%R"]).stdout.split()
    return f"; partition {resources.partition}: {nearest(resources.partition, known)}" if known else ""
