"""`job.json` (`job/1`) and `filed.json` (`filed/1`): a job's state, and its submission to Slurm."""

from __future__ import annotations

import contextlib
import json
import secrets
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer
from typing_extensions import Self

from ssl_transfer.errors import UserError
from ssl_transfer.files import remove_partial_files
from ssl_transfer.formats import FileFormat

STATE_FILE = "job.json"
SUBMISSION_FILE = "filed.json"

JobStatus = Literal["running", "done", "diverged", "failed", "cancelled", "requeued"]


def utc_now() -> str:
    """The time as ISO 8601 in UTC, to the millisecond."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _check_time(text: str) -> str:
    with contextlib.suppress(ValueError):
        if datetime.fromisoformat(text).tzinfo is not None:
            return text
    raise ValueError(f"must be a time as ISO 8601 with its offset from UTC, not {text!r}")


Time = Annotated[str, AfterValidator(_check_time)]


class ProcessId(FileFormat):
    """A process of a machine. The start time tells it from a later process with the same number."""

    host: str = Field(description="the machine's host name")
    pid: int = Field(ge=0, lt=1 << 31, description="the process number")
    started: int | None = Field(default=None, description="start in clock ticks since boot; null without /proc")


class AttemptRecord(FileFormat):
    """A former attempt at a job."""

    started: Time = Field(description="its start, ISO 8601 in UTC")
    ended: Time | None = Field(default=None, description="its end; of one that wrote none, the last line of its log")
    status: JobStatus = Field(description="how it ended; `running`: it was killed and wrote no end")
    error: str | None = Field(default=None, description="why it has no result")
    job_id: str | None = Field(default=None, description="its Slurm job; null without Slurm")
    gpus: int = Field(default=0, description="GPUs that were allocated to it, on all nodes")

    @property
    def seconds(self) -> float:
        """Its duration; 0 where its end is unknown."""
        start = datetime.fromisoformat(self.started)
        return max((datetime.fromisoformat(self.ended) - start).total_seconds(), 0.0) if self.ended else 0.0


class JobState(FileFormat):
    """The state of a job's last attempt."""

    format: Literal["job/1"] = Field(default="job/1", description="name and version of the format")
    name: str = Field(description="the job's name")
    fingerprint: str = Field(description="the job's fingerprint")
    status: JobStatus = Field(description="`requeued`: stopped after a checkpoint and returned to Slurm's queue")
    executor: str = Field(description="`local`, `debug` or `slurm`")
    attempts: int = Field(description="how often the job was started")
    started: Time = Field(description="start of the last attempt, ISO 8601 in UTC")
    ended: Time | None = Field(default=None, description="end of the last attempt; null while it runs")
    exit_code: int | None = Field(default=None, description="of the last command; negative: the signal that killed it")
    error: str | None = Field(default=None, description="the last error line of a failed attempt")
    process: ProcessId | None = Field(default=None, description="the process that works on the job while it runs")
    inputs: list[list[str | None]] | None = Field(
        default=None, description="what a table or choice read: name, fingerprint, status and end of each input"
    )
    job_id: str | None = Field(default=None, description="the Slurm job of the attempt; null without Slurm")
    kills: int = Field(default=0, description="attempts in a row that were killed (SIGKILL, or a vanished process)")
    hangs: int = Field(default=0, description="attempts in a row in which a process hung and ended itself")
    restarts: int | None = Field(default=None, description="how often Slurm had requeued the job before this attempt")
    gpus: int = Field(default=0, description="GPUs allocated to the attempt, on all nodes")
    earlier: list[AttemptRecord] = Field(default_factory=list, description="the attempts before it")

    @model_serializer(mode="wrap")
    def _omit_unset_none(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialize(self)
        return values  # this format writes every key, null ones too

    @property
    def seconds(self) -> float:
        """Duration of the last attempt, up to now while it runs."""
        end = datetime.fromisoformat(self.ended) if self.ended else datetime.now(timezone.utc)
        return (end - datetime.fromisoformat(self.started)).total_seconds()

    def after(self, before: JobState | None, log: Path) -> Self:
        """This state as that of the attempt after `before`, whose output is in `log`."""
        if before is None:
            return self
        ended = before.ended
        if ended is None and log.exists():
            ended = datetime.fromtimestamp(log.stat().st_mtime, timezone.utc).isoformat(timespec="milliseconds")
        names = ("started", "status", "error", "job_id", "gpus")
        record = AttemptRecord(ended=ended, **{name: getattr(before, name) for name in names})
        kills = before.kills if before.job_id == self.job_id else 0
        hangs = before.hangs if before.job_id == self.job_id else 0
        return self.replace(attempts=before.attempts + 1, kills=kills, hangs=hangs, earlier=[*before.earlier, record])

    def all_attempts(self) -> list[AttemptRecord]:
        """Every attempt, the last one up to now while it runs."""
        last = AttemptRecord(
            started=self.started,
            ended=self.ended or utc_now(),
            status=self.status,
            error=self.error,
            job_id=self.job_id,
            gpus=self.gpus,
        )
        return [*self.earlier, last]

    def replace(self, **changes: Any) -> Self:
        """A copy with other values."""
        return self.model_copy(update=changes)

    def finish(self, status: JobStatus, **changes: Any) -> Self:
        """The state at the end of the attempt, as of now."""
        return self.replace(status=status, ended=utc_now(), process=None, **changes)


class SlurmSubmission(FileFormat):
    """A job's submission to Slurm. A Slurm job with another id does not touch the job's folder."""

    format: Literal["filed/1"] = Field(default="filed/1", description="name and version of the format")
    id: str = Field(description="the Slurm job id, `123` or `123_4`")
    at: str = Field(description="time of the submission, ISO 8601 in UTC")
    attempt: int = Field(description="the number of attempts before it")
    requeues: int = Field(description="how often Slurm may requeue the job")
    name: str = Field(description="the job's name")
    fingerprint: str = Field(description="the job's fingerprint")

    def write_to(self, folder: Path) -> None:
        """Write the file into the job's folder.

        It is renamed into place but not flushed to disk: flushing hundreds of files takes long, and a Slurm job whose
        record was lost in a power failure runs nothing.
        """
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial_files(folder, [SUBMISSION_FILE])
        part = folder / f".{SUBMISSION_FILE}.{secrets.token_hex(4)}.tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")
            part.replace(folder / SUBMISSION_FILE)
        except OSError as error:
            remedy = f"make room, end Slurm job {self.id} (scancel), and submit again"
            raise UserError(f"cannot write {folder / SUBMISSION_FILE}: {error.strerror}; {remedy}") from error

    @classmethod
    def read_from(cls, folder: Path) -> Self | None:
        """The last submission of the job in `folder`; None if there was none, or its record is damaged."""
        return cls.read_or_none(folder / SUBMISSION_FILE)
