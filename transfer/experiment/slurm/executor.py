"""Files the graph with sbatch through submitit: arrays of trials, dependencies, one record in each job's folder."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from transfer.experiment.decide import Decision
from transfer.experiment.executors import Listener, Outcome, Work
from transfer.experiment.filing import Filed
from transfer.experiment.graph import Job
from transfer.experiment.local import job_environment
from transfer.experiment.resources import Resources, Stages, resources_for
from transfer.experiment.site import Site, read_site
from transfer.experiment.slurm import check, commands, snapshot
from transfer.experiment.slurm.sbatch import Request, parameters, python_of
from transfer.experiment.slurm.task import Task
from transfer.experiment.spec import Experiment
from transfer.experiment.store import now

FOLDER = "slurm"
"""Below the run folder: submission files, pickles and what Slurm and submitit themselves print."""


ARRAYS = {"finetune": ".s", "search": ".lr"}
"""Kinds whose jobs of one row and task are an array, and what sets their names apart."""


class Slurm:
    """Files jobs and returns.

    Args:
        site: what holds on this cluster; the user's own file unless told.
    """

    name = "slurm"

    def __init__(self, site: Site | None = None) -> None:
        self.site = site or read_site()

    def refusal(self, experiment: Experiment, decisions: Mapping[str, Decision]) -> str | None:
        """No Slurm, a queue that does not answer, or resources that this cluster does not give."""
        absent = [name for name in ("sbatch", "squeue", "srun", "scancel") if shutil.which(name) is None]
        if absent:
            return f"no {', '.join(absent)} on this machine; ask on a login node of a cluster, or use --cluster local"
        unknown = [one for one in decisions.values() if one.status == "unknown"]
        if unknown:
            return unknown[0].why
        asked = {}
        for job in (one.job for one in decisions.values() if one.action == "run"):
            own = job.asked_by is not None and experiment.rows[job.asked_by].resources != Stages()
            place = f"rows.{job.asked_by}.resources.{job.kind}" if own else f"resources.{job.kind}"
            asked[place] = self._resources(job, experiment)
        return check.refused(asked, sys.executable)

    def run(self, work: Work, listener: Listener) -> Outcome:
        """File what is to run, in the graph's order, each job once what it needs has its id.

        Raises:
            UserError: sbatch refused a job; what was filed before stays filed, and asking again files the rest.
        """
        outcome = Outcome(held=sum(one.action == "queued" for one in work.decisions.values()))
        listener.begin(work, 0)
        code = snapshot.take(work.store.run_dir) if work.experiment.slurm.snapshot and work.to_run() else None
        try:
            for group in groups(work):
                ids = self._file(group, work, outcome, code)
                listener.filed(group.jobs, ids, group.after(outcome.filed))
        finally:
            listener.end()
        return outcome

    def _resources(self, job: Job, experiment: Experiment) -> Resources:
        layers = [self.site.resources, experiment.resources]
        if job.asked_by is not None:
            layers.append(experiment.rows[job.asked_by].resources)
        return resources_for(job.kind, layers)

    def _file(self, group: Group, work: Work, outcome: Outcome, code: Path | None) -> list[str]:
        for job in group.jobs:
            _withdraw(job, work)
        resources = self._resources(group.jobs[0], work.experiment)
        request = self.request(group, work, resources, group.dependency(outcome.filed), code)
        ids = submit(request, work.store.run_dir / FOLDER, self._tasks(group, work, resources, code))
        for job, id_ in zip(group.jobs, ids, strict=True):
            state = work.store.read(job)
            attempts = state.attempts if state else 0
            filed = Filed(id_, now(), attempts, work.experiment.slurm.requeues, job.name, job.fingerprint)
            filed.write(work.store.folder(job))
            outcome.filed[job.name] = id_
        return ids

    def request(
        self, group: Group, work: Work, resources: Resources, dependency: str, code: Path | None = None
    ) -> Request:
        """What is asked of sbatch for a group."""
        settings = work.experiment.slurm
        folders = [work.store.folder(job) for job in group.jobs]
        name = f"{work.graph.experiment}.{group.name}"
        chosen = {} if code is None else {"code": code}
        return Request(
            name,
            resources,
            folders,
            dependency,
            settings.requeues,
            settings.array_parallelism,
            sys.executable,
            **chosen,
        )

    def _tasks(self, group: Group, work: Work, resources: Resources, code: Path | None) -> list[Task]:
        experiment = work.experiment
        # A job has its cores from Slurm: threads are as many as cores, unless somebody says otherwise.
        variables = {"OMP_NUM_THREADS": str(resources.cpus or 1)}
        variables |= {k: v for k, v in job_environment(experiment).items() if k != "OMP_NUM_THREADS"}
        variables |= {**resources.environment, **experiment.environment}
        return [
            Task(
                run_dir=str(work.store.run_dir),
                job=commands.rewritten(job, code, sys.executable),
                environment=variables,
                continues=experiment.continues,
                requeues=experiment.slurm.requeues,
                grace=0.75 * (resources.signal_seconds or 60),
                stage_to=resources.stage_to,
            )
            for job in group.jobs
        ]


@dataclass(frozen=True)
class Group:
    """Jobs that are filed together: the trials of a row on a task, the points of a search, or one job.

    Attributes:
        jobs: the jobs; what they need is the same.
        waits: of what they need, the jobs that have no result yet.
        held: the queue's ids of those of them that are in the queue already.
    """

    jobs: Sequence[Job]
    waits: Sequence[str]
    held: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The stage."""
        return self.jobs[0].kind

    @property
    def name(self) -> str:
        """The jobs' common name."""
        first = self.jobs[0].name
        return first if len(self.jobs) == 1 else first.rsplit(ARRAYS[self.kind], 1)[0]

    def dependency(self, filed: Mapping[str, str]) -> str:
        """sbatch's `--dependency`."""
        ids = {**self.held, **filed}
        wanted = [ids[name] for name in self.waits if name in ids]
        if not wanted:
            return ""
        if self.jobs[0].after_any:
            wanted = [id_.partition("_")[0] for id_ in wanted]  # an array's number stands for all of it
            return f"afterany:{':'.join(dict.fromkeys(wanted))}"
        return f"afterok:{':'.join(dict.fromkeys(wanted))}"

    def after(self, filed: Mapping[str, str]) -> str:
        """The dependency in words."""
        return (
            self.dependency(filed)
            .replace("afterok:", "after ")
            .replace("afterany:", "after the end of ")
            .replace(":", ", ")
        )


def groups(work: Work) -> Iterator[Group]:
    """The jobs to run, those that can be an array together, each group after those it needs."""
    decisions, graph = work.decisions, work.graph
    held = {}
    for name, one in decisions.items():
        filed = work.store.filed(graph[name]) if one.action == "queued" else None
        if filed is not None:
            held[name] = filed.id
    waiting = [job for job in graph if job.name in decisions and decisions[job.name].action == "run"]
    unsettled = {job.name for job in waiting} | set(held)
    found: dict[tuple[object, ...], list[Job]] = {}
    for job in waiting:
        alike = (job.kind, job.row, job.task, job.needs) if job.kind in ARRAYS else (job.name,)
        found.setdefault(alike, []).append(job)
    for jobs in found.values():
        yield Group(jobs, [need for need in jobs[0].needs if need in unsettled], held)


def submit(request: Request, folder: Path, tasks: Sequence[Callable[[], object]]) -> list[str]:
    """File one job, or an array of several; the queue's ids, in order.

    Raises:
        UserError: sbatch refused.
    """
    executor = make_executor(request, folder)
    from submitit.core.utils import FailedJobError

    try:
        with _clean_environment(), executor.batch():
            jobs = [executor.submit(task) for task in tasks]
    except FailedJobError as error:
        said = " ".join(str(error).replace("sbatch: error:", "").split())[:300]
        raise UserError(
            f"sbatch refused {request.name}: {said}; mend it and submit again: what is filed stays"
        ) from error
    return [str(job.job_id) for job in jobs]


def make_executor(request: Request, folder: Path) -> Any:
    """submitit's executor with the request's parameters."""
    logging.getLogger("submitit").setLevel(logging.CRITICAL)  # what it would say is said in one line
    import submitit

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The number of requeues is counted by the job itself, by the reason of each.
        executor = submitit.SlurmExecutor(folder, max_num_timeout=10**6, python=python_of(request))
        executor.update_parameters(**parameters(request))
    return executor


@contextlib.contextmanager
def _clean_environment() -> Iterator[None]:
    """Without what an allocation or torchrun left in this shell: a job would take it for its own."""
    keep = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")
    others = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    names = [n for n in os.environ if (n.startswith(("SLURM_", "SRUN_", "SUBMITIT_")) and n not in keep) or n in others]
    before = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(before)


def _withdraw(job: Job, work: Work) -> None:
    """Take a filed job that still waits out of the queue: it is filed again, behind more inputs."""
    filed, entry = work.store.filed(job), work.store.entry(job)
    if filed is not None and entry is not None and entry.pending:
        check.call(["scancel", filed.id])
