"""Takes a filed job out of the queue, or asks the running one to save and leave.

A running one is told as if its time was up: SIGTERM would reach every process of the job, loaders' workers too, and the
tool could not save any more.
"""

from __future__ import annotations

from common.errors import UserError
from transfer.experiment.graph import Job
from transfer.experiment.queue import Entry
from transfer.experiment.slurm import check


def cancel_filed(job: Job, entry: Entry) -> str:
    """Cancel one job of the queue; a running one has the time it needs to save.

    Returns:
        What was done, in words.

    Raises:
        UserError: Slurm refuses.
    """
    softly = ["--signal=USR2"] if entry.running else []
    done = check.call(["scancel", *softly, entry.id])
    if done.returncode:
        raise UserError(f"scancel {entry.id} failed: {' '.join(done.stderr.split())[:200]}")
    return f"{job.name} (Slurm job {entry.id})"
