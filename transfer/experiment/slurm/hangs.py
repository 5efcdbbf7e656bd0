"""What follows when a process of a Slurm job hung: the job is requeued, from the second time on without that node."""

from __future__ import annotations

from common.formats.job import JobState, SlurmSubmission
from transfer.experiment.slurm_queue import run_slurm

MAX_HANGS = 3
"""Attempts in a row that may hang; the second and later ones exclude the node that is to blame."""


def state_after_hang(
    before: JobState, reason: str, submission: SlurmSubmission, *, restarts: int, code: int
) -> JobState:
    """The job's state after an attempt in which a process hung.

    Args:
        before: its `job.json`.
        reason: of the process that hung.
        submission: its submission to Slurm.
        restarts: how often Slurm has restarted it.
        code: srun's exit code.
    """
    hangs = before.hangs + 1
    ended = before if before.ended else before.finish("requeued")
    if hangs >= MAX_HANGS:
        return ended.replace(
            status="failed", hangs=hangs, exit_code=code, error=f"{hangs} times in a row {reason}"[:300]
        )
    if restarts >= submission.requeues:
        error = f"was requeued {restarts} times already; {reason}"
        return ended.replace(status="failed", hangs=hangs, exit_code=code, error=error[:300])
    return ended.replace(status="requeued", hangs=hangs, exit_code=code, error=reason[:300])


def exclude_node(job: str, host: str) -> str | None:
    """Keep a pending job from a node, where its partition has enough others.

    Args:
        job: the Slurm job's id.
        host: the node's name.

    Returns:
        Why the node was not excluded; None if it was.
    """
    partition, _, nodes = run_slurm(["squeue", "--noheader", f"--jobs={job}", "--format=%P %D"]).stdout.partition(" ")
    listed = run_slurm(["sinfo", "--noheader", "--Node", f"--partition={partition.strip()}", "--format=%N"]).stdout
    others = set(listed.split()) - {host}
    if len(others) < int(nodes.strip() or 1):
        return f"{host} was not excluded: its partition has {len(others)} other nodes"
    done = run_slurm(["scontrol", "update", f"JobId={job}", f"ExcNodeList={host}"])
    return f"{host} was not excluded ({' '.join(done.stderr.split())})" if done.returncode else None
