"""What is asked of sbatch for a group of jobs: submitit's parameters, from resources; a pure function."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import environment
from transfer.experiment.resources import Resources


@dataclass(frozen=True)
class Request:
    """One job, or an array of alike ones.

    Attributes:
        name: what squeue shows.
        resources: what each gets.
        folders: the jobs' folders, in the array's order.
        dependency: sbatch's `--dependency`; empty when it waits for nothing.
        requeues: how often each may be put back into the queue.
        parallelism: how many of an array run at a time.
        python: the interpreter that files them; it also looks after what was killed.
        code: the checkout that runs.
    """

    name: str
    resources: Resources
    folders: Sequence[Path]
    dependency: str
    requeues: int
    parallelism: int
    python: str
    code: Path = environment.ROOT


def parameters(request: Request) -> dict[str, Any]:
    """submitit's parameters.

    `gpus_per_node` where no gres is given; `--kill-on-invalid-dep` where there is a dependency, so that what waits for
    a failed job does not wait for ever; `--kill-on-bad-exit`, because the other processes would wait for a dead one.
    """
    ask = request.resources
    extra: dict[str, Any] = {"requeue": True, **ask.sbatch}
    if request.dependency:
        extra = {"kill-on-invalid-dep": "yes", **extra}
    found: dict[str, Any] = {
        "job_name": request.name,
        "nodes": ask.nodes,
        "ntasks_per_node": ask.tasks_per_node,
        "cpus_per_task": ask.cpus,
        "mem": memory(ask.memory_gb),
        "time": math.ceil((ask.hours or 1) * 60),
        "signal_delay_s": ask.signal_seconds,
        "partition": ask.partition,
        "account": ask.account,
        "qos": ask.qos,
        "constraint": ask.constraint,
        "gres": ask.gres,
        "gpus_per_node": ask.gpus if ask.gpus and not ask.gres else None,
        "dependency": request.dependency or None,
        "array_parallelism": request.parallelism,
        "additional_parameters": extra,
        "setup": _setup(request),
        "teardown": _teardown(request) if request.folders else None,
        # Since 22.05 srun no longer takes over what sbatch was told about CPUs.
        "srun_args": ["--kill-on-bad-exit=1", *([f"--cpus-per-task={ask.cpus}"] if ask.cpus else [])],
    }
    return {"wckey": None, **{key: value for key, value in found.items() if value is not None}}


def memory(gigabytes: float | None) -> str | None:
    """As sbatch spells it, in whole megabytes."""
    return None if gigabytes is None else f"{math.ceil(gigabytes * 1024)}M"


def python_of(request: Request) -> str:
    """The shell words that start Python for a job's processes."""
    ask = request.resources
    python = shlex.quote(ask.python or request.python)
    return f"{ask.container} {python}" if ask.container else python


def _setup(request: Request) -> list[str]:
    ask = request.resources
    lines = [f"export PYTHONPATH={shlex.quote(str(request.code))}${{PYTHONPATH:+:$PYTHONPATH}}"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in ask.environment.items()]
    return [*ask.setup, *lines]


def _teardown(request: Request) -> list[str]:
    """What looks at how the job ended: only the batch script is left when a process was killed."""
    words = [request.python, "-m", "transfer.experiment.slurm.after", "--requeues", str(request.requeues)]
    folders = [str(folder) for folder in request.folders]
    return [f'code=$?; {shlex.join(words)} --code "$code" {shlex.join(folders)}']
