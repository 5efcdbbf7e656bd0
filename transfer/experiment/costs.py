"""GPU-hours before anything runs, from measured seconds per step with a named source."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transfer.experiment.decide import Decisions
from transfer.experiment.graph import Job
from transfer.experiment.spec import StepTime


@dataclass(frozen=True)
class JobCost:
    """What a job costs.

    Attributes:
        gpu_hours: on the GPUs of `measured`.
        measured: the step time that it is computed from.
    """

    gpu_hours: float
    measured: StepTime


def job_cost(job: Job, step_times: Sequence[StepTime]) -> JobCost | None:
    """A job's cost by the first step time for its recipe; None if there is none.

    Args:
        job: the job.
        step_times: the site's own before the shipped ones.
    """
    for one in step_times:
        if job.recipe in one.recipes and job.total and one.per == job.counter:
            return JobCost(job.total * one.seconds * one.gpus / 3600, one)
    return None


def cost_lines(decisions: Decisions, step_times: Sequence[StepTime]) -> Iterator[str]:
    """The cost of the jobs to run, one line per stage; stages that need no GPU are left out."""
    by_kind: dict[str, list[Job]] = defaultdict(list)
    for one in decisions.values():
        if one.action == "run" and one.job.kind not in ("convert", "choose", "table"):
            by_kind[one.job.kind].append(one.job)
    for kind, jobs in by_kind.items():
        known = [cost for job in jobs if (cost := job_cost(job, step_times)) is not None]
        parts = []
        if known:
            hours = sum(one.gpu_hours for one in known)
            devices = ", ".join(dict.fromkeys(one.measured.device for one in known))
            parts.append(f"{hours:,.1f} GPU-hours on {devices}")
        if len(known) < len(jobs):
            parts.append(f"{len(jobs) - len(known)} unknown" if known else "unknown GPU-hours")
        sources = "; ".join(dict.fromkeys(one.measured.source for one in known))
        yield f"{kind}: {len(jobs)} jobs, {', '.join(parts)}" + (f" ({sources})" if sources else "")
