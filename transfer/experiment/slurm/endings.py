"""How a start of a Slurm job ended: by its `job.json`, the error records of its processes, and what srun printed.

Where one process fails, srun ends the others (`--kill-on-bad-exit`), and those that wait in a collective lose their
connection: of all errors the cause must be found.
"""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ssl_transfer.environment import host_name
from ssl_transfer.errors import UserError
from ssl_transfer.files import expect_shape, read_json_object, read_tail, write_json
from ssl_transfer.formats.job import JobState, SlurmSubmission, utc_now
from transfer.experiment.executors import last_error_line

MAX_KILLS = 3
"""Attempts in a row that may be killed: what runs out of memory does so again."""
MAX_HANGS = 3
"""Attempts in a row that may hang; the second and later ones exclude the node that is to blame."""
KILLED = 128 + signal.SIGKILL
"""srun's exit code where a process was killed."""
_LOST_CONNECTION = re.compile(
    r"(closed|reset) by peer|[Bb]roken pipe|remote process exited|ncclRemoteError|connectFullMesh|Connection refused"
    r"|communicator was aborted|failed to recv, got 0 bytes|NCCL communicator .*abort"
)
_SRUN = re.compile(r"^srun: error: (\S+): tasks? ([\d,-]+): (.+)$")
_SRUN_ENDS_THE_REST = re.compile(r"Terminating (Job)?StepId|Job step aborted|\*\*\* STEP ")
_JOB_ENDED = re.compile(r"\*\*\* JOB \d+ ON \S+ CANCELLED AT \S+ (?:DUE TO (.+?) )?\*\*\*")
END_OF_START = "== end of start "

Kind = Literal["error", "killed", "effect"]


@dataclass(frozen=True)
class ProcessEnd:
    """How a process of a job ended that was not the first one.

    Attributes:
        error: which process, where, and why.
        kind: `killed`: by SIGKILL or for want of memory; `effect`: it lost the connection to another process.
        at: when, ISO 8601 in UTC; empty if only srun's line says that it ended.
    """

    rank: int
    error: str
    kind: Kind
    at: str = ""


def kind_of_end(code: int | None, error: str | None) -> Kind:
    if code == -signal.SIGKILL:
        return "killed"
    return "effect" if _LOST_CONNECTION.search(error or "") or code == -signal.SIGTERM else "error"


def write_process_end(folder: Path, run: str, rank: int, error: str, code: int) -> None:
    """Write the error record of a process that is not the first one.

    Args:
        folder: the job's.
        run: the Slurm job and its restarts, `123.0`.
        rank, error, code: of the process.
    """
    content = {"run": run, "rank": rank, "host": host_name(), "error": error[:300], "exit_code": code}
    write_json(folder / f"error.rank{rank}.json", {**content, "at": utc_now()})


def read_process_ends(folder: Path, run: str) -> list[ProcessEnd]:
    """The error records of one start of a job, in the order of their time."""
    found = []
    for file in folder.glob("error.rank*.json"):
        with contextlib.suppress(UserError), expect_shape(file, "remove it"):
            content = read_json_object(file)
            if content["run"] != run:
                continue
            error = f"process {content['rank']} on {content['host']}: {content['error']}"
            kind = kind_of_end(content["exit_code"], content["error"])
            found.append(ProcessEnd(content["rank"], error, kind, content.get("at", "")))
    return sorted(found, key=lambda end: end.at)


@dataclass(frozen=True)
class SlurmLog:
    """What Slurm itself printed for a job, into the output of its batch script.

    Attributes:
        stops: for each line (with its time) by which Slurm ended the job, why: `JOB REQUEUE` …; empty: by scancel.
        ends: the processes that ended in the last start before srun ended the rest.
        last_line: of the last start, if possible of somebody else than srun, whose lines are effects.
    """

    stops: Mapping[str, str] = field(default_factory=dict)
    ends: tuple[ProcessEnd, ...] = ()
    last_line: str = "nothing"


def log_of_job(folder: Path, id_: str, rank: int = 0) -> Path:
    """The output of a process below the run folder; the first one's is also that of the batch script and of srun."""
    return folder.parents[1] / "slurm" / f"{id_}_{rank}_log.err"


def read_slurm_log(folder: Path, id_: str) -> SlurmLog:
    """Read what Slurm printed for a job.

    Args:
        folder: the job's.
        id_: its Slurm id.
    """
    log = log_of_job(folder, id_)
    text = read_tail(log)
    stops = list(_JOB_ENDED.finditer(text))
    last = re.sub(f"(?s).*{END_OF_START}.*?\n", "", text[stops[-1].end() if stops else 0 :])
    lines = [line.strip() for line in last.splitlines() if line.strip()]
    causes = [line for line in lines if not line.startswith(("submitit ", "srun: "))]
    ends = tuple(_ends_before_the_rest(lines, folder, id_))
    return SlurmLog({stop[0]: stop[1] or "" for stop in stops}, ends, (causes or lines or ["nothing"])[-1])


def _ends_before_the_rest(lines: Sequence[str], folder: Path, id_: str) -> Iterator[ProcessEnd]:
    for line in lines:
        found = _SRUN.match(line)
        if found is not None:
            host, ranks, what = found.groups()
            rank = int(re.split("[,-]", ranks)[0])
            kind: Kind = "killed" if what in ("Killed", "Out Of Memory") else "error"
            cause = last_error_line(log_of_job(folder, id_, rank)) if rank and kind == "error" else ""
            yield ProcessEnd(rank, f"process {rank} on {host}: {what}" + (f": {cause}" if cause else ""), kind)
        elif _SRUN_ENDS_THE_REST.search(line):
            return


def describe_stop(state: JobState, reason: str) -> JobState:
    """The state of an attempt that Slurm stopped, by the reason that it printed; empty: scancel."""
    if not reason:
        return state.replace(status="cancelled", error="cancelled by user (scancel)")
    return state.replace(error=f"stopped by Slurm: {reason.lower()}")


def final_state(
    before: JobState | None,
    ends: Sequence[ProcessEnd],
    submission: SlurmSubmission,
    *,
    restarts: int,
    code: int,
    folder: Path,
) -> JobState:
    """The job's state after a start of it that Slurm has not ended itself.

    Args:
        before: its `job.json`.
        ends: the error records of its other processes.
        submission: its submission to Slurm.
        restarts: how often Slurm has restarted it.
        code: srun's exit code.
        folder: the job's.
    """
    is_of_this_start = before is not None and before.job_id == submission.id and before.restarts in (None, restarts)
    log = read_slurm_log(folder, submission.id)
    recorded = {end.rank for end in ends}
    printed = [end for end in log.ends if end.rank not in recorded and (end.rank or not is_of_this_start)]
    ends = [*ends, *printed]
    if before is None or not is_of_this_start:
        before = _state_without_start(before, submission, restarts, folder)
        if not ends and code == 128 + signal.SIGTERM:
            before = _end(before, "requeued", "SIGTERM before it began", code)
        elif all(end.rank == 0 and end.kind == "error" for end in ends):  # srun's line tells only the exit code
            where = log_of_job(folder, submission.id)
            reason = f"srun exited with {code} before the job began and printed: {log.last_line[:160]} ({where})"
            return before.finish("failed", exit_code=code, error=reason)
    return _limit_requeues(_judge(before, ends, code, folder), submission, restarts)


def _judge(state: JobState, ends: Sequence[ProcessEnd], code: int, folder: Path) -> JobState:
    """The state by the first end that is no effect of another; without one, a process ended without a record."""
    own = kind_of_end(state.exit_code, state.error) if state.status == "failed" else None
    causes = [(end.at, end.kind, end.error) for end in ends if end.kind != "effect"]
    if own in ("error", "killed"):
        causes.append((state.ended or "", own, state.error or ""))
    _, kind, line = min(causes, default=("", "effect", ends[0].error if ends else ""))
    if kind == "error":
        return state if own == "error" and line == state.error else _end(state, "failed", line, code)
    if kind == "killed" or code == KILLED or (ends and own is None):
        line = line or last_error_line(folder / "stdout.log")
        return _requeue_killed(state, "a process was killed" + (f" ({line})" if line else ""), code)
    if state.status == "running":
        line = last_error_line(log_of_job(folder, str(state.job_id)))
        return _end(state, "failed", f"the first process exited with {code}" + (f": {line}" if line else ""), code)
    return state.replace(status="requeued") if state.exit_code == -signal.SIGTERM else state


def _end(state: JobState, status: Literal["failed", "requeued"], error: str, code: int) -> JobState:
    ended = state if state.ended else state.finish(status)
    return ended.replace(status=status, exit_code=code, error=error[:300])


def _requeue_killed(state: JobState, reason: str, code: int) -> JobState:
    kills = state.kills + 1
    if kills >= MAX_KILLS:
        return _end(state, "failed", f"killed {kills} times in a row; {reason}", code).replace(kills=kills)
    return _end(state, "requeued", reason, code).replace(kills=kills)


def _limit_requeues(state: JobState, submission: SlurmSubmission, restarts: int) -> JobState:
    if state.status != "requeued" or restarts < submission.requeues:
        return state
    return state.replace(status="failed", error=f"was requeued {restarts} times already; {state.error}"[:300])


def _state_without_start(before: JobState | None, submission: SlurmSubmission, restarts: int, folder: Path) -> JobState:
    """The state of a start whose first process wrote nothing: set-up lines, a container, a missing module."""
    state = JobState(
        name=submission.name,
        fingerprint=submission.fingerprint,
        status="running",
        executor="slurm",
        attempts=1,
        started=utc_now(),
        job_id=submission.id,
        restarts=restarts,
    )
    return state.after(before, folder / "stdout.log")


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
    if hangs >= MAX_HANGS:
        return _end(before, "failed", f"{hangs} times in a row {reason}", code).replace(hangs=hangs)
    return _limit_requeues(_end(before, "requeued", reason, code).replace(hangs=hangs), submission, restarts)
