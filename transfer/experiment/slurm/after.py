"""The last line of every batch script: looks at how the job ended, and puts back what was killed.

When a process was killed outright (out of memory, a node's trouble), only the batch script is left to see it. It exits
with 0 when the job has its result: that is what the jobs behind it wait for.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.files import read_json, write_json
from transfer.experiment.attempt import last_error_line
from transfer.experiment.filing import Filed, read_filed
from transfer.experiment.slurm import check, place
from transfer.experiment.slurm.place import Place
from transfer.experiment.store import ENDED_WELL, State, ended, now

KILLS = 3
"""Attempts in a row that may be killed: what runs out of memory does so again."""


@dataclass(frozen=True)
class Word:
    """What a process that is not the first one left behind.

    Attributes:
        error: why it broke, and where.
        killed: whether it was killed.
    """

    error: str
    killed: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Judge, write it down, put the job back if that is the verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requeues", type=int, required=True)
    parser.add_argument("--code", type=int, required=True)
    parser.add_argument("folders", nargs="+", type=Path)
    args = parser.parse_args(argv)
    here = place.from_environment()
    folder: Path = args.folders[int(os.environ.get("SLURM_ARRAY_TASK_ID") or 0)]
    filed = read_filed(folder)
    if filed is None or filed.id != here.id:
        return 1
    path = folder / "job.json"
    before = State.of(read_json(path)) if path.exists() else None
    if before is not None and before.job_id == here.id and before.status in (*ENDED_WELL, "cancelled"):
        return 0 if before.status in ENDED_WELL else 1
    if not _runs(here):
        return _wait_for_the_end()
    state = judge(before, words(folder, here), here, filed, args.code, folder)
    if state != before:
        write_json(path, state.content())
    return _put_back(path, state, here) if state.status == "requeued" else 1


def words(folder: Path, here: Place) -> list[Word]:
    """What the other processes of this start left."""
    found = []
    for file in sorted(folder.glob("error.rank*.json")):
        content = read_json(file)
        if content["run"] == here.run:
            error = f"process {content['rank']} on {content['host']}: {content['error']}"
            found.append(Word(error, content["exit_code"] == -signal.SIGKILL))
    return found


def judge(before: State | None, said: Sequence[Word], here: Place, filed: Filed, code: int, folder: Path) -> State:
    """The job's state after this start of it.

    Args:
        before: what `job.json` says.
        said: what processes other than the first one left.
        here: the job.
        filed: its filing.
        code: srun's exit code.
        folder: the job's folder.
    """
    if before is None or before.job_id != here.id:
        return _never_began(before, filed, code, folder)
    broken = next((word for word in said if not word.killed), None)
    if before.status == "running" and broken is not None:
        return ended(before, "failed", exit_code=code, error=broken.error[:300])
    killed = before.status == "failed" and before.exit_code == -signal.SIGKILL
    if before.status == "running" or killed:
        line = said[0].error if said else before.error or last_error_line(folder / "stdout.log")
        why = "a process was killed" + (f" ({line})" if line else "")
        kills = before.kills + 1
        state = ended(before, "requeued", exit_code=code, error=why[:300])
        state = replace(state, kills=kills)
        if kills >= KILLS:
            return replace(state, status="failed", error=f"killed {kills} times in a row; {why}"[:300])
        if here.restarts >= filed.requeues:
            return replace(state, status="failed", error=f"put back {here.restarts} times already; {why}"[:300])
        return state
    if before.status == "requeued" and here.restarts >= filed.requeues:
        return replace(before, status="failed", error=f"put back {here.restarts} times already; {before.error}"[:300])
    return before


def _never_began(before: State | None, filed: Filed, code: int, folder: Path) -> State:
    """No process came as far as to write anything: set-up lines, a container, a missing module."""
    state = State(
        name=filed.name,
        fingerprint=filed.fingerprint,
        status="running",
        executor="slurm",
        attempts=(before.attempts if before else 0) + 1,
        started=now(),
        job_id=filed.id,
    )
    log = folder.parents[1] / "slurm" / f"{filed.id}_0_log.err"
    said = [line.strip() for line in log.read_text(errors="replace").splitlines()] if log.exists() else []
    telling = [line for line in said if line and not line.startswith(("submitit ", "srun: "))]  # srun's come of others
    line = (telling or said or ["nothing"])[-1]
    why = f"srun exited with {code} before the job began and said: {line[:160]} ({log})"
    return ended(state, "failed", exit_code=code, error=why)


def _runs(here: Place) -> bool:
    """Whether the job is to run on: not when it was put back, preempted or cancelled already."""
    return check.call(["squeue", "--noheader", f"--jobs={here.id}", "--format=%T"]).stdout.strip() == "RUNNING"


def _put_back(path: Path, state: State, here: Place) -> int:
    """`scontrol requeue`; writes down why where that fails."""
    done = check.call(["scontrol", "requeue", here.id])
    if done.returncode:
        why = f"could not be put back ({' '.join(done.stderr.split())}); {state.error}"
        write_json(path, replace(state, status="failed", error=why[:300]).content())
        return 1
    return _wait_for_the_end()


def _wait_for_the_end() -> int:
    """Slurm ends this script. An exit code that came first would count as the job's, which waits in the queue again."""
    time.sleep(120)
    return 1


if __name__ == "__main__":
    sys.exit(main())
