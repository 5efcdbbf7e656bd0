"""`--cluster slurm`: submits the graph with sbatch, as arrays of trials with dependencies."""

from __future__ import annotations

import math
import shlex
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ssl_transfer import environment
from ssl_transfer.errors import EXIT_OK, EXIT_REQUEUE, UserError, nearest
from ssl_transfer.formats.job import SUBMISSION_FILE, SlurmSubmission, utc_now
from transfer.experiment.decide import Decision, Decisions, decide
from transfer.experiment.executors import Executor, RunListener, RunOutcome, RunPlan, job_environment
from transfer.experiment.graph import Job
from transfer.experiment.load import read_site, run_dir_of
from transfer.experiment.slurm.job_processes import EXCLUDED_FILE, EXIT_ENDED_BY_SLURM, EXIT_RECORDED, SlurmTask
from transfer.experiment.slurm.staging import copy_code
from transfer.experiment.slurm_queue import NoRoomError, is_out_of_room, max_array_size, run_slurm, submit_script
from transfer.experiment.spec import (
    GPU_OPTIONS,
    MEMORY_OPTIONS,
    Experiment,
    Resources,
    SiteConfig,
    StageResources,
    format_hours,
    in_minutes,
    parse_hours,
    resources_for,
)

FOLDER = "slurm"
"""Below the run folder: submission files, pickles and the output of Slurm and submitit themselves."""
ARRAY_SUFFIXES = {"finetune": ".s", "search": ".lr"}
"""Kinds whose jobs of one row and task form an array, and what begins the part in which their names differ."""
WAIT_FOR_SLURM = 120
"""Seconds that a batch script waits for Slurm to end it."""
ROOM_PAUSE = 60.0
"""Seconds between two looks whether the queue takes more jobs."""


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
        python: the interpreter that runs them, unless the resources name another.
        code: the checkout that runs, or a copy of one; None: what is installed in the interpreter's site-packages.
    """

    name: str
    resources: Resources
    folders: Sequence[Path] = ()
    dependency: str = ""
    requeues: int = 0
    parallelism: int = 1
    python: str = sys.executable
    code: Path | None = None if environment.IS_WHEEL else environment.ROOT

    @property
    def interpreter(self) -> str:
        """The shell words that start the job's own Python: a node's may differ from the submitting machine's."""
        python = shlex.quote(self.resources.python or self.python)
        return f"{self.resources.container} {python}" if self.resources.container else python


@dataclass(frozen=True)
class JobArray:
    """Jobs that are submitted together: the trials of a row on a task, the candidates of a search, or one job.

    Attributes:
        jobs: the jobs; they need the same jobs.
        waits_for: of those, the ones that have no result yet.
        queued: the Slurm ids of those that are in the queue already.
        share: the part of the jobs that could form one array, if Slurm allowed arrays of that size.
    """

    jobs: Sequence[Job]
    waits_for: Sequence[str]
    queued: Mapping[str, str] = field(default_factory=dict)
    share: float = 1.0

    @property
    def name(self) -> str:
        first = self.jobs[0]
        return first.name if len(self.jobs) == 1 else first.name.rsplit(ARRAY_SUFFIXES[first.kind], 1)[0]

    def parts(self, size: int) -> list[JobArray]:
        """Arrays of `size` jobs at most."""
        cut = [self.jobs[start : start + size] for start in range(0, len(self.jobs), size)]
        return [replace(self, jobs=jobs, share=self.share * len(jobs) / len(self.jobs)) for jobs in cut]

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
        wait_for_room: where the queue takes no more jobs, submit the rest as jobs end.
    """

    name = "slurm"

    def __init__(self, site: SiteConfig | None = None, *, wait_for_room: bool = False) -> None:
        self.site = site or read_site()
        self.wait_for_room = wait_for_room

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
        return refused_by_sbatch(self._requested(experiment, decisions))

    def _requested(self, experiment: Experiment, decisions: Decisions) -> dict[str, Resources]:
        """The resources of each stage to run, by the config key that requests them."""
        requested = {}
        for job in (one.job for one in decisions.values() if one.action == "run"):
            row = experiment.rows[job.row_key] if job.row_key is not None else None
            of_row = row is not None and row.resources != StageResources()
            key = f"rows.{job.row_key}.resources.{job.kind}" if of_row else f"resources.{job.kind}"
            requested[key] = self.resources(job, experiment)
        return requested

    def run(self, plan: RunPlan, listener: RunListener) -> RunOutcome:
        """Submit what is to run, in the graph's order, each job once the jobs that it needs have an id.

        Where the queue takes no more jobs, the rest is left (`RunOutcome.left`) or, with `wait_for_room`, submitted as
        jobs end. The table takes the place of the last job that has not started.

        Raises:
            UserError: sbatch refused a job; what was submitted before stays, and another submit adds the rest.
        """
        outcome = RunOutcome(already_queued=sum(one.action == "queued" for one in plan.decisions.values()))
        listener.begin(plan, 0)
        code = copy_code(plan.store.run_dir) if _runs_copy(plan) and plan.to_run() else None
        try:
            while True:
                outcome.no_room = self._submit_round(plan, outcome, listener, code)
                to_run = {job.name for job in plan.to_run()} - outcome.submitted.keys()
                outcome.left = [job.name for job in plan.graph if job.name in to_run]
                if not outcome.left or not self.wait_for_room:
                    return outcome
                listener.no_room(outcome.left, outcome.no_room)
                time.sleep(ROOM_PAUSE)
                plan = self._renew(plan, outcome, listener)
        finally:
            listener.end()

    def _submit_round(self, plan: RunPlan, outcome: RunOutcome, listener: RunListener, code: Path | None) -> str:
        """Submit what the queue has room for; what sbatch said when it had none, else an empty text."""
        limit, full, has_made_room = max_array_size(), "", False
        for whole in job_arrays(plan):
            is_table = whole.jobs[0].kind == "table"
            parts = whole.parts(limit) if is_table or not full else []
            while parts and (is_table or not full):
                array = parts.pop(0)
                dependency = array.dependency(outcome.submitted)
                try:
                    ids = self._submit(array, plan, dependency, code)
                except NoRoomError as error:
                    outcome.submitted.pop(array.jobs[0].name, None)  # a table that began before the last of its inputs
                    if len(array.jobs) > 1:  # as many as there is room for
                        parts[:0] = array.parts((len(array.jobs) + 1) // 2)
                    elif is_table and not has_made_room and _remove_last(plan, outcome):
                        has_made_room, parts = True, [array]
                        full = full or str(error)
                    else:
                        full = full or str(error)
                    continue
                outcome.submitted.update(zip((job.name for job in array.jobs), ids, strict=True))
                listener.submitted(array.jobs, ids, _describe_dependency(dependency))
        return full

    def _renew(self, plan: RunPlan, outcome: RunOutcome, listener: RunListener) -> RunPlan:
        """The plan for what is left, by what has ended meanwhile; a job whose input failed is blocked."""
        snapshot = plan.store.snapshot(plan.graph)
        decisions: dict[str, Decision] = {}
        without_result: dict[str, str] = {}
        for name, one in decide(plan.graph, snapshot).items():
            by = None if one.job.after_any else next((n for n in one.job.needs if n in without_result), None)
            if by is not None and name in outcome.left:
                outcome.blocked[name] = without_result[name] = without_result[by]
                listener.blocked(one.job, without_result[by])
            elif one.action != "run" or name in outcome.left or one.job.kind == "table":
                decisions[name] = one
            else:  # what has failed since is for the next submit
                without_result[name] = name
        return replace(plan, decisions=decisions, snapshot=snapshot)

    def dry_run(self, plan: RunPlan) -> Iterator[str]:
        """The batch scripts in the order of submission; a job that others wait for stands as `<its name>`.

        Raises:
            UserError: resources contradict each other.
        """
        for key, resources in self._requested(plan.experiment, plan.decisions).items():
            if said := resources.contradiction():
                raise UserError(f"{key}: {said}")
        submitted: dict[str, str] = {}
        code = plan.store.run_dir / "code-…" if _runs_copy(plan) else None
        for whole in job_arrays(plan):
            for array in whole.parts(max_array_size()):
                request = self._request(array, plan, array.dependency(submitted), code)
                names = [job.name for job in array.jobs]
                submitted.update((name, f"<{name}>") for name in names)
                text = script_text(request, plan.store.run_dir / FOLDER, len(names))
                yield f"##### {' '.join(names)}\n{text}"

    def resources(self, job: Job, experiment: Experiment) -> Resources:
        """What a job gets: by the site, the experiment and its row."""
        layers = [self.site.resources, experiment.resources]
        if job.row_key is not None:
            layers.append(experiment.rows[job.row_key].resources)
        return resources_for(job.kind, layers)

    def _request(self, array: JobArray, plan: RunPlan, dependency: str, code: Path | None) -> SbatchRequest:
        settings = plan.experiment.slurm
        return SbatchRequest(
            f"{plan.graph.experiment}.{array.name}",
            self.resources(array.jobs[0], plan.experiment),
            [plan.store.folder(job) for job in array.jobs],
            dependency,
            settings.requeues,
            max(math.floor(settings.array_parallelism * array.share), 1),
            code=code or SbatchRequest.code,
        )

    def _submit(self, array: JobArray, plan: RunPlan, dependency: str, code: Path | None) -> list[str]:
        settings, store = plan.experiment.slurm, plan.store
        decisions = [plan.decisions[job.name] for job in array.jobs]
        if len(decisions) == 1 and (id_ := _wait_for_more(decisions[0], dependency)) is not None:
            return [id_]
        request = self._request(array, plan, dependency, code)
        if request.resources.environment or plan.experiment.environment:  # its scripts and pickles hold their values
            folder = store.run_dir / FOLDER
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        ids = submit_to_slurm(request, store.run_dir / FOLDER, _tasks(array, plan, request.resources, code))
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
            _remove_from_queue(one)
        return ids


def _runs_copy(plan: RunPlan) -> bool:
    """Whether the jobs run a copy of the checkout; what is installed from a wheel is not edited and needs none."""
    return plan.experiment.slurm.snapshot and not environment.IS_WHEEL


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


def _wait_for_more(one: Decision, dependency: str) -> str | None:
    """Let a job that is in the queue wait for more inputs; its id, or None if it is not, or no longer.

    Its place in the queue is never given up: a full queue might not take it again.
    """
    submission, entry = one.view.submission, one.view.queue_entry
    if submission is None or entry is None or not entry.is_pending or not dependency:
        return None
    done = run_slurm(["scontrol", "update", f"JobId={submission.id}", f"Dependency={dependency}"], attempts=3)
    return None if done.returncode else submission.id


def _remove_from_queue(one: Decision) -> None:
    """Cancel a pending Slurm job of the job, which was submitted again: in this order, for there may be no room."""
    if one.view.submission is not None and one.view.queue_entry is not None and one.view.queue_entry.is_pending:
        run_slurm(["scancel", one.view.submission.id])


def _remove_last(plan: RunPlan, outcome: RunOutcome) -> bool:
    """Make room for the table: cancel the job that was submitted last, if it has not started; False if it has."""
    name, id_ = next(reversed(outcome.submitted.items()), ("", ""))
    if not id_ or run_slurm(["scancel", "--state=PENDING", id_]).returncode:
        return False
    words = ["squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={id_}"]
    if run_slurm(words, attempts=3).stdout.strip() != "CANCELLED":
        return False
    del outcome.submitted[name]
    (plan.store.folder(plan.graph[name]) / SUBMISSION_FILE).unlink(missing_ok=True)
    return True


def _describe_dependency(dependency: str) -> str:
    text = dependency.replace("afterok:", "after ").replace("afterany:", "after the end of ")
    return text.replace(":", ", ")


def script_text(request: SbatchRequest, folder: Path, count: int = 1) -> str:
    """The batch script; of an array if `count` is more than 1. Its pickles and Slurm's output are in `folder`."""
    from submitit.slurm.slurm import _make_sbatch_string

    words = [
        *request.resources.srun,
        request.interpreter,
        f"-u {_run_module('submitit.core._submit')}",
        shlex.quote(str(folder)),
    ]
    parameters = sbatch_parameters(request)
    text: str = _make_sbatch_string(" ".join(words), folder, **parameters, map_count=count if count > 1 else None)
    return text


def _run_module(name: str) -> str:
    """Python's `-m NAME`, but that the user's `transfer.py` in the folder that submits is not imported for ours.

    `-m` looks for modules in the current folder first, and `-P`, which does not, came with Python 3.11.
    """
    return (
        f'-c "import sys; sys.path[:] = filter(None, sys.path); import runpy; '
        f"runpy.run_module('{name}', run_name='__main__', alter_sys=True)\""
    )


def sbatch_parameters(request: SbatchRequest) -> dict[str, Any]:
    """submitit's parameters; None leaves an option out.

    `gpus_per_node` without gres; `--kill-on-invalid-dep` with a dependency, so that jobs behind a failed one do not
    wait indefinitely; `--kill-on-bad-exit`, because the other processes would wait for one that died.
    """
    resources = request.resources
    extra: dict[str, Any] = {"requeue": True, **resources.sbatch}
    if request.dependency:
        extra = {"kill-on-invalid-dep": "yes", **extra}
    memory = None if extra.keys() & set(MEMORY_OPTIONS) else resources.memory_gb
    other_gpus = resources.gres or extra.keys() & set(GPU_OPTIONS)
    return {
        "job_name": request.name,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "cpus_per_task": resources.cpus,
        "mem": None if memory is None else f"{math.ceil(memory * 1024)}M",
        "time": None if resources.hours is None else in_minutes(resources.hours),
        "signal_delay_s": resources.signal_seconds or 60,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "gres": resources.gres,
        "gpus_per_node": None if other_gpus else resources.gpus or None,
        "dependency": request.dependency or None,
        "array_parallelism": request.parallelism,
        "additional_parameters": extra,
        "setup": _setup(request),
        "teardown": ["end_job $?"] if request.folders else None,
        # Since 22.05 srun does not take over sbatch's number of CPUs. Where a site sets `--export=NONE`, srun would
        # hide what the script exports.
        "srun_args": [
            *("--kill-on-bad-exit=1", "--export=ALL"),
            *([f"--cpus-per-task={resources.cpus}"] if resources.cpus else []),
        ],
        "wckey": None,
    }


FAILED_LINE = (
    "trap 'code=$?; [ ${#BASH_SOURCE[@]} -gt 1 ] || { echo \"error: set-up line failed with exit code $code: "
    '$(sed -n "${LINENO}p" "$0"); a line that may fail ends in || true" >&2; end_job $code; }\' ERR'
)
"""Ends the job at the first of the user's lines that fails; what a sourced file does inside is its own affair."""


def _setup(request: SbatchRequest) -> list[str]:
    resources = request.resources
    lines = [FAILED_LINE, *resources.setup, "trap - ERR"] if resources.setup else []
    lines += [f"export {name}={shlex.quote(value)}" for name, value in resources.environment.items()]
    return [*_end_job(request), *lines, *(f"export {path}" for path in _python_path(request))]


def _python_path(request: SbatchRequest) -> list[str]:
    return [f"PYTHONPATH={shlex.quote(str(request.code))}${{PYTHONPATH:+:$PYTHONPATH}}"] if request.code else []


def _end_job(request: SbatchRequest) -> list[str]:
    """A shell function that writes down how the job ended and requeues it: a killed process cannot do so itself.

    The job's own Python writes; Slurm's commands run outside it, because a container often has none.
    """
    if not request.folders:
        return ["end_job() { exit $1; }"]
    srun = ["srun --nodes=1 --ntasks=1 --ntasks-per-node=1 --export=ALL", *request.resources.srun]
    own = " ".join([*(srun if request.resources.srun else []), request.interpreter])
    module = f"{_run_module('transfer.experiment.slurm.job_processes')} --requeues {request.requeues}"
    record = [
        " ".join([*_python_path(request), python, module, '"$@"', *map(shlex.quote, map(str, request.folders))])
        for python in dict.fromkeys((own, shlex.quote(request.python)))
    ]
    known = "|".join(map(str, (EXIT_OK, EXIT_REQUEUE, EXIT_ENDED_BY_SLURM, EXIT_RECORDED)))
    if len(record) > 1:  # where the first cannot start, what it says of that is not the job's reason
        record[0] = f'said=$({record[0]} 2>&1); code=$?; case $code in {known}) echo "$said" >&2; return $code;; esac'
    return [
        *("record_end() {", *(f"    {line}" for line in record), "}"),
        # Slurm excludes nodes of pending jobs only; it ends this script soon after it has requeued the job.
        "exclude_node() {",
        '    others=$(sinfo -h -N -p "$SLURM_JOB_PARTITION" -o %N | sort -u | grep -cvx "$node")',
        '    [ "$others" -lt "$SLURM_JOB_NUM_NODES" ] || scontrol update "JobId=$job" "ExcNodeList=$node"',
        "}",
        "end_job() {",
        "    trap - ERR",
        "    job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}",
        '    for _ in 1 2 3; do state=$(squeue --noheader --jobs="$job" --format=%T) && break; sleep 2; done',
        '    record_end --code "$1" --state "$state"; code=$?',
        f"    if [ $code = {EXIT_REQUEUE} ]; then",
        f"        folders=({shlex.join(map(str, request.folders))})",
        f'        node=$(cat "${{folders[${{SLURM_ARRAY_TASK_ID:-0}}]}}/{EXCLUDED_FILE}" 2>/dev/null)',
        '        [ -z "$node" ] || trap "" TERM',
        '        said=$(scontrol requeue "$job" 2>&1) || { record_end --code "$1" --not-requeued "$said"; exit 1; }',
        '        [ -z "$node" ] || exclude_node',
        "    fi",
        # An earlier exit code would count as that of the requeued job.
        f"    case $code in {EXIT_REQUEUE}|{EXIT_ENDED_BY_SLURM}) sleep {WAIT_FOR_SLURM};; esac",
        f"    [ $code != {EXIT_RECORDED} ] || exit 1",
        "    exit $code",
        "}",
    ]


def submit_to_slurm(request: SbatchRequest, folder: Path, tasks: Sequence[Callable[[], object]]) -> list[str]:
    """Submit one job, or an array of several; the Slurm ids, in order.

    Raises:
        NoRoomError: a limit of submitted jobs is reached.
        UserError: sbatch refused, or the controller does not answer.
    """
    from submitit.core.utils import DelayedSubmission, JobPaths

    folder.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex
    script = folder / f"submission_file_{token}.sh"
    pickles = [folder / f"{token}.{number}.pkl" for number in range(len(tasks))]
    try:
        for task, pickle in zip(tasks, pickles, strict=True):
            delayed = DelayedSubmission(task)
            # The job itself counts its requeues, by the reason of each.
            delayed.set_timeout(in_minutes(request.resources.hours or 24), 10**6)
            delayed.dump(pickle)
        script.write_text(script_text(request, folder, len(tasks)), encoding="utf-8")
        id_ = submit_script(script, request.name)
    except BaseException as error:
        for file in (script, *pickles):
            file.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"cannot write {folder}: {error.strerror}; what is submitted stays") from error
        raise
    ids = [id_] if len(tasks) == 1 else [f"{id_}_{number}" for number in range(len(tasks))]
    for one, pickle in zip(ids, pickles, strict=True):
        JobPaths(folder, job_id=one).move_temporary_file(pickle, "submitted_pickle")
    JobPaths(folder, job_id=id_).move_temporary_file(script, "submission_file")
    return ids


def refused_by_sbatch(requested: Mapping[str, Resources]) -> str | None:
    """Why these cannot be submitted, for the first such stage; None if they can. Submits nothing.

    Args:
        requested: the resources of each stage, by the config key that requests them.
    """
    tried: list[Resources] = []
    for key, resources in requested.items():
        if resources in tried:
            continue
        tried.append(resources)
        said = resources.contradiction()
        if said is None and (said := _test_submission(resources)) is not None:
            said = f"sbatch refuses: {said}{_suggest_partition(said, resources)}"
        if said is not None:
            return f"{key}: {said}"
    return None


def _test_submission(resources: Resources) -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "check.sh"
        script.write_text(script_text(SbatchRequest("check", resources), Path(folder)), encoding="utf-8")
        done = run_slurm(["sbatch", "--test-only", str(script)], attempts=3)
    if done.returncode == 0 or is_out_of_room(done.stderr):
        return _exceeds_partition(resources)
    lines = [line.replace("sbatch: error: ", "").strip() for line in done.stderr.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines))[:300] or f"exit code {done.returncode}"


def _exceeds_partition(resources: Resources) -> str | None:
    """A limit above the partition's: where Slurm does not refuse it, the job would wait in the queue indefinitely."""
    if resources.partition is None or resources.hours is None:
        return None
    shown = run_slurm(["sinfo", "--noheader", f"--partition={resources.partition}", "--format=%l"], attempts=3).stdout
    limits = [parse_hours(line.strip()) for line in shown.splitlines()]
    most = max((limit or math.inf for limit in limits), default=math.inf)
    if in_minutes(resources.hours) <= most * 60 + 0.01:
        return None
    limit = f"{format_hours(most)} (h:mm) of partition {resources.partition}"
    return f"hours {format_hours(resources.hours)} is more than the {limit}"


def _suggest_partition(said: str, resources: Resources) -> str:
    if resources.partition is None or "partition" not in said.lower():
        return ""
    known = run_slurm(["sinfo", "--noheader", "--format=%R"]).stdout.split()
    return f"; partition {resources.partition}: {nearest(resources.partition, known)}" if known else ""
