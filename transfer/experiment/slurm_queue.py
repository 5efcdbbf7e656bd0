"""Slurm's commands, and the state of jobs in its queue: one call of squeue for all, one of sacct for older ones."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_transfer.errors import UserError, abbreviate

PENDING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT")
RUNNING = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED", "RESIZING")
BACKOFF = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds to wait before each further try of a submission that a busy controller did not take."""
MAX_ARRAY_SIZE = 1001
"""Slurm's own default, where `scontrol` does not tell."""
TIMEOUT = 60.0
"""Seconds to wait for a busy controller."""
_HAS_ENDED = re.compile("Invalid job id|already complet", re.IGNORECASE)


@dataclass(frozen=True)
class QueueEntry:
    """A job in Slurm's queue.

    Attributes:
        id: `123` or `123_4`.
        state: Slurm's: PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, TIMEOUT, ….
        reason: why it is pending, or why it ended.
        nodes: where it runs or ran.
        exit_code: of its batch script, and the signal that ended it, such as `0:9`; empty if unknown.
        user: who cancelled it; empty if unknown.
        name: of the job or its array; empty where it was not queried.
    """

    id: str
    state: str
    reason: str = ""
    nodes: str = ""
    exit_code: str = ""
    user: str = ""
    name: str = ""

    @property
    def is_pending(self) -> bool:
        return self.state in PENDING

    @property
    def is_running(self) -> bool:
        """Whether it runs or is about to end."""
        return self.state in RUNNING

    @property
    def is_active(self) -> bool:
        return self.is_pending or self.is_running


Queue = Mapping[str, QueueEntry]


class NoRoomError(UserError):
    """The queue takes no more jobs of this user now: a limit of submitted jobs is reached."""


def run_slurm(words: Sequence[str], attempts: int = 1) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands.

    Args:
        words: the command.
        attempts: how often it is run while the controller is busy, a little later each time.

    Raises:
        UserError: it is not installed, or does not answer.
    """
    for attempt in range(1, attempts + 1):
        try:
            done = subprocess.run(list(words), capture_output=True, text=True, timeout=TIMEOUT, check=False)
        except FileNotFoundError as error:
            advice = "run this on a login node of the cluster, or use --cluster local"
            raise UserError(f"there is no {words[0]} on this machine; {advice}") from error
        except subprocess.TimeoutExpired as error:
            if attempt == attempts:
                raise UserError(f"{words[0]} did not answer in {TIMEOUT:.0f} s; try again later") from error
            continue
        if not (done.returncode and is_transient(done.stderr)) or attempt == attempts:
            break
        time.sleep(attempt)
    return done


def is_transient(said: str) -> bool:
    """Whether a command of Slurm failed only because the controller was busy or could not be reached."""
    return bool(_TRANSIENT.search(said))


_LIMIT = re.compile(r"\b(?:QOS|Assoc)[A-Za-z]+")
_TRANSIENT = re.compile(
    r"timed out|did not answer|temporarily|contact slurm controller|connection (failure|refused|reset)|"
    r"(receive|send|communication).*(failure|error)|zero bytes|transport endpoint|try again",
    re.IGNORECASE,
)


def submit_script(script: Path, name: str) -> str:
    """sbatch, with further tries where the controller is busy; the Slurm id.

    A controller that is busy may have taken the job and lost the answer: each try first looks for the script in the
    queue.
    """
    for pause in (*BACKOFF, BACKOFF[0]):
        said, id_ = _call_sbatch(script)
        if id_ is None and not is_transient(said):
            break
        if id_ is None:
            time.sleep(pause)
            id_ = _find_submitted(script)
        if id_ is not None:
            return id_
    if is_out_of_room(said):
        raise NoRoomError(said)
    remedy = "try again later" if is_transient(said) else "correct it and submit again"
    raise UserError(f"sbatch refused {name}: {said}; {remedy}: what is submitted stays")


def _call_sbatch(script: Path) -> tuple[str, str | None]:
    """What sbatch printed, and the Slurm id in it."""
    try:
        with clean_environment():
            done = run_slurm(["sbatch", str(script)])
    except UserError as error:  # no answer in time, which is transient; or there is no sbatch
        return str(error), None
    found = re.search(r"Submitted batch job (\d+)", done.stdout)
    said = " ".join(f"{done.stderr} {done.stdout}".replace("sbatch: error: ", "").split())[:300]
    return said, found[1] if found else None


def _find_submitted(script: Path) -> str | None:
    """The Slurm id of the job of this script, if the controller has it."""
    words = ["squeue", "--noheader", f"--user={os.getuid()}", "--states=all", "--format=%F|%o"]
    with contextlib.suppress(UserError):
        for line in run_slurm(words, attempts=3).stdout.splitlines():
            id_, _, command = line.strip().partition("|")
            if command == str(script):
                return id_
    return None


def is_out_of_room(said: str) -> bool:
    limits = _LIMIT.findall(said)
    return any("Submit" in limit for limit in limits) if limits else "job submit limit" in said


@contextlib.contextmanager
def clean_environment() -> Iterator[None]:
    """submitit's `clean_env`, except for the variables that name the cluster or are options of sbatch."""
    from submitit.helpers import clean_env

    names = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")
    kept = {name: value for name, value in os.environ.items() if name in names or name.startswith("SBATCH_")}
    with clean_env():
        os.environ.update(kept)
        yield


def max_array_size() -> int:
    """How many jobs an array may have (`MaxArraySize`)."""
    with contextlib.suppress(UserError):
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", run_slurm(["scontrol", "show", "config"]).stdout, re.MULTILINE)
        return max(int(found[1]), 1) if found else MAX_ARRAY_SIZE
    return MAX_ARRAY_SIZE


def query_jobs(ids: Collection[str]) -> dict[str, QueueEntry]:
    """The state of Slurm jobs, by id; jobs that Slurm no longer knows are left out.

    Raises:
        UserError: there is no squeue here, or the controller does not answer.
    """
    if not ids:
        return {}
    found = {entry.id: entry for entry in _squeue({id_.partition("_")[0] for id_ in ids}) if entry.id in ids}
    purged = [id_ for id_ in ids if id_ not in found]
    if purged:
        found.update((entry.id, entry) for entry in _sacct(purged))
    return found


def query_folder(folder: Path) -> list[QueueEntry]:
    """This user's jobs in the queue whose batch script lies in a folder, which need not exist any more.

    Raises:
        UserError: there is no squeue here, or the controller does not answer.
    """
    done = run_slurm(["squeue", "--me", "--noheader", "--array", "--format=%i|%T|%j|%o"])
    if done.returncode:
        said = " ".join(done.stderr.split())[:200]
        raise UserError(f"squeue failed: {said}; try again when the controller answers")
    lines = (line.strip().split("|", 3) for line in done.stdout.splitlines())
    return [QueueEntry(line[0], line[1], name=line[2]) for line in lines if line[-1].startswith(f"{folder}/")]


def end_jobs(entries: Iterable[QueueEntry]) -> None:
    """Remove pending jobs from the queue and tell running ones to save and exit, by two calls of scancel.

    scancel without a signal would send SIGTERM to every process of a running job, workers of data loaders too, and
    the tool could not save. SIGUSR2 is Slurm's warning before the time limit.

    Raises:
        UserError: there is no scancel here, or the controller does not answer.
    """
    entries = list(entries)
    for options, is_running in ((), False), (("--signal=USR2",), True):
        ids = [entry.id for entry in entries if entry.is_running is is_running]
        done = run_slurm(["scancel", *options, *ids]) if ids else None
        if done is not None and done.returncode:
            lines = done.stderr.splitlines() or [f"exit code {done.returncode}"]
            if failed := [line for line in lines if not _HAS_ENDED.search(line)]:
                raise UserError(f"scancel of {abbreviate(ids)} failed: {failed[0].strip()[:200]}; try again later")


def _squeue(bases: Collection[str]) -> Iterator[QueueEntry]:
    words = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(sorted(bases))}"]
    done = run_slurm([*words, "--Format=JobArrayID:|,State:|,Reason:|,NodeList:|,exit_code:"], attempts=3)
    if done.returncode and "Invalid job id" in done.stderr:  # none of them is known any more
        return
    if done.returncode:
        said = " ".join(done.stderr.split())[:200]
        raise UserError(f"squeue failed: {said}; try again when the controller answers")
    for line in done.stdout.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) in (4, 5):
            id_, state, reason, nodes, *code = fields
            yield QueueEntry(id_, state, reason, nodes, _exit_code("".join(code)))


def _exit_code(text: str) -> str:
    """`7:0` for squeue's wait status 1792."""
    return f"{int(text) >> 8}:{int(text) & 0x7F}" if text.isdigit() else text


def _sacct(ids: Collection[str]) -> Iterator[QueueEntry]:
    """From Slurm's accounting, if there is one."""
    if shutil.which("sacct") is None:
        return
    for id_, state, nodes, code in _ask_accounting(ids, "State,NodeList,ExitCode"):
        word, _, user = state.partition(" by ")  # `CANCELLED by 1000`
        yield QueueEntry(id_, word, nodes=nodes, exit_code=code, user=_user_name(user))


def _ask_accounting(ids: Collection[str], fields: str, *options: str) -> Iterator[list[str]]:
    """The id and the requested fields of the jobs that Slurm's accounting knows; nothing if there is none."""
    if shutil.which("sacct") is None or not ids:
        return
    words = ["sacct", "--noheader", "--parsable2", "--allocations", *options, f"--jobs={','.join(sorted(ids))}"]
    try:
        done = run_slurm([*words, f"--format=JobID,{fields}"])
    except UserError:
        return
    for line in done.stdout.splitlines() if not done.returncode else ():
        found = line.split("|")
        if len(found) == fields.count(",") + 2 and found[0] in ids:
            yield found


def _user_name(uid: str) -> str:
    try:
        return pwd.getpwuid(int(uid)).pw_name
    except (ValueError, KeyError):
        return uid


@dataclass(frozen=True)
class AccountedStart:
    """One start of a Slurm job in its accounting: seconds, and its GPUs (None: Slurm does not count them)."""

    seconds: float
    gpus: int | None


Starts = Mapping[str, Sequence[AccountedStart]]


def query_starts(ids: Collection[str]) -> Starts:
    """Every start of the jobs, requeued ones too, by Slurm id; empty without accounting."""
    found: dict[str, list[AccountedStart]] = {}
    for id_, seconds, resources in _ask_accounting(ids, "ElapsedRaw,AllocTRES", "--duplicates"):
        gpus = re.search(r"gres/gpu=(\d+)", resources)
        if seconds.isdigit() and int(seconds):
            start = AccountedStart(float(seconds), int(gpus.group(1)) if gpus else None)
            found.setdefault(id_, []).append(start)
    return found
