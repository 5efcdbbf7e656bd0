"""What a cluster's queue says of filed jobs: one call of squeue for all, one of sacct for those that squeue forgot."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from common.errors import UserError

PENDING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT")
RUNNING = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED", "RESIZING")
SECONDS = 60
"""How long a busy controller is waited for."""


@dataclass(frozen=True)
class Entry:
    """A job as the queue knows it.

    Attributes:
        id: `123` or `123_4`.
        state: Slurm's word: PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, TIMEOUT, ….
        reason: why it waits.
        start: when it is expected to start or has started; empty or N/A where nobody knows.
        nodes: where it runs.
    """

    id: str
    state: str
    reason: str = ""
    start: str = ""
    nodes: str = ""

    @property
    def pending(self) -> bool:
        """Whether it waits to be started."""
        return self.state in PENDING

    @property
    def running(self) -> bool:
        """Whether it works, or is about to be gone."""
        return self.state in RUNNING

    @property
    def active(self) -> bool:
        """Whether it will still do something."""
        return self.pending or self.running


Queue = Mapping[str, Entry]


def look(ids: Collection[str]) -> dict[str, Entry]:
    """What the queue knows of these jobs, by id; a job it has forgotten is left out.

    Raises:
        UserError: there is no squeue here, or the controller does not answer.
    """
    if not ids:
        return {}
    found = {entry.id: entry for entry in _squeue({id_.partition("_")[0] for id_ in ids}) if entry.id in ids}
    forgotten = [id_ for id_ in ids if id_ not in found]
    if forgotten:
        found.update((entry.id, entry) for entry in _sacct(forgotten))
    return found


def _squeue(bases: Collection[str]) -> Iterator[Entry]:
    words = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(sorted(bases))}"]
    done = _call([*words, "--format=%i|%T|%r|%S|%N"])
    if done.returncode and "Invalid job id" in done.stderr:  # all are forgotten
        return
    if done.returncode:
        said = " ".join(done.stderr.split())[:200]
        raise UserError(f"squeue failed: {said}; ask again when the controller answers")
    for line in done.stdout.splitlines():
        fields = line.strip().split("|")
        if len(fields) == 5:
            yield Entry(*fields)


def _sacct(ids: Collection[str]) -> Iterator[Entry]:
    """From Slurm's accounting; nothing where there is none."""
    if shutil.which("sacct") is None:
        return
    words = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(sorted(ids))}"]
    try:
        done = _call([*words, "--format=JobID,State,NodeList"])
    except UserError:
        return
    if done.returncode:
        return
    for line in done.stdout.splitlines():
        fields = line.split("|")
        if len(fields) == 3 and fields[0] in ids:
            yield Entry(fields[0], fields[1].split(" ")[0], nodes=fields[2])  # `CANCELLED by 1000`


def _call(words: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
    except FileNotFoundError as error:
        raise UserError(
            f"there is no {words[0]} on this machine; ask on a login node of the cluster, or use --cluster local"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{words[0]} did not answer in {SECONDS} s; ask again later") from error
