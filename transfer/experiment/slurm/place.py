"""Where this process is in the cluster's queue, from its environment."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A process of a Slurm job.

    Attributes:
        id: the job's, as squeue shows it: `123` or `123_4`.
        restarts: how often it was put back into the queue.
        rank: the process's number over all nodes.
    """

    id: str
    restarts: int = 0
    rank: int = 0

    @property
    def run(self) -> str:
        """This start of the job among all its starts."""
        return f"{self.id}.{self.restarts}"


def from_environment() -> Place:
    """This process's place."""
    env = os.environ
    array = env.get("SLURM_ARRAY_JOB_ID")
    id_ = f"{array}_{env['SLURM_ARRAY_TASK_ID']}" if array else env["SLURM_JOB_ID"]
    return Place(id_, int(env.get("SLURM_RESTART_COUNT") or 0), int(env.get("SLURM_PROCID") or 0))
