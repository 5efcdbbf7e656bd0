"""GPU-hours before anything runs, from seconds a step that somebody measured and named."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from common import environment
from common.errors import UserError
from transfer.experiment.decide import Decision
from transfer.experiment.graph import Job
from transfer.experiment.resources import Strict

SHIPPED = environment.ROOT / "configs/seconds.yaml"


class Entry(Strict):
    """One measurement.

    Attributes:
        recipes: the tasks or configs (by stem) that it is for.
        seconds: what one step takes.
        per: what a step is.
        gpus: the GPUs that took it together.
        device: their kind.
        source: who measured it.
    """

    recipes: list[str] = Field(min_length=1)
    seconds: Annotated[float, Field(gt=0)]
    per: Literal["iteration", "epoch"] = "iteration"
    gpus: int = Field(ge=1)
    device: str
    source: str = Field(min_length=1)


def shipped(path: Path = SHIPPED) -> list[Entry]:
    """The table that comes with the project.

    Raises:
        UserError: it was edited into something wrong.
    """
    try:
        return TypeAdapter(list[Entry]).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError, OSError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())[:200]}") from error


@dataclass(frozen=True)
class Cost:
    """What a job takes.

    Attributes:
        gpu_hours: on the GPUs of `entry`.
        entry: the measurement it comes from.
    """

    gpu_hours: float
    entry: Entry


def cost(job: Job, entries: Sequence[Entry]) -> Cost | None:
    """A job's cost by the first entry for its recipe; None where nobody measured it.

    Args:
        job: the job.
        entries: the site's own before the shipped ones.
    """
    for entry in entries:
        if job.recipe in entry.recipes and job.total and entry.per == job.counter:
            return Cost(job.total * entry.seconds * entry.gpus / 3600, entry)
    return None


def summary(decisions: Mapping[str, Decision], entries: Sequence[Entry]) -> Iterator[str]:
    """What the jobs to run take, a line a stage; stages that need no GPU are left out."""
    by_kind: dict[str, list[Job]] = defaultdict(list)
    for one in decisions.values():
        if one.action == "run" and one.job.kind not in ("convert", "choose", "table"):
            by_kind[one.job.kind].append(one.job)
    for kind, jobs in by_kind.items():
        found = [cost(job, entries) for job in jobs]
        known = [one for one in found if one is not None]
        words = []
        if known:
            hours = sum(one.gpu_hours for one in known)
            devices = ", ".join(dict.fromkeys(one.entry.device for one in known))
            words.append(f"{hours:,.1f} GPU-hours on {devices}")
        if len(known) < len(jobs):
            words.append(f"{len(jobs) - len(known)} unknown" if known else "unknown GPU-hours")
        sources = "; ".join(dict.fromkeys(one.entry.source for one in known))
        yield f"{kind}: {len(jobs)} jobs, {', '.join(words)}" + (f" ({sources})" if sources else "")
