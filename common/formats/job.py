"""`job.json` (`job/1`) and `filed.json` (`filed/1`): a job's state, and its submission to Slurm."""

from __future__ import annotations

import json
import secrets
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer
from typing_extensions import Self

from common.formats import FileFormat

STATE_FILE = "job.json"
SUBMISSION_FILE = "filed.json"

JobStatus = Literal["running", "done", "diverged", "failed", "cancelled", "requeued"]


def utc_now() -> str:
    """The time as ISO 8601 in UTC, to the millisecond."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


class ProcessId(FileFormat):
    """A process of a machine. The start time tells it from a later process with the same number."""

    host: str = Field(description="the machine's host name")
    pid: int = Field(description="the process number")
    started: int | None = Field(default=None, description="start in clock ticks since boot; null without /proc")


class JobState(FileFormat):
    """The state of a job's last attempt."""

    format: Literal["job/1"] = Field(default="job/1", description="name and version of the format")
    name: str = Field(description="the job's name")
    fingerprint: str = Field(description="the job's fingerprint")
    status: JobStatus = Field(description="`requeued`: stopped after a checkpoint and returned to Slurm's queue")
    executor: str = Field(description="`local`, `debug` or `slurm`")
    attempts: int = Field(description="how often the job was started")
    started: str = Field(description="start of the last attempt, ISO 8601 in UTC")
    ended: str | None = Field(default=None, description="end of the last attempt; null while it runs")
    exit_code: int | None = Field(default=None, description="of the last command; negative: the signal that killed it")
    error: str | None = Field(default=None, description="the last error line of a failed attempt")
    process: ProcessId | None = Field(default=None, description="the process that works on the job while it runs")
    inputs: list[list[str | None]] | None = Field(
        default=None, description="what a table or choice read: name, fingerprint, status and end of each input"
    )
    job_id: str | None = Field(default=None, description="the Slurm job of the attempt; null without Slurm")
    kills: int = Field(default=0, description="attempts in a row that were killed (SIGKILL, or a vanished process)")

    @model_serializer(mode="wrap")
    def _omit_unset_none(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialize(self)
        return values  # this format writes every key, null ones too

    @property
    def seconds(self) -> float:
        """Duration of the last attempt, up to now while it runs."""
        end = datetime.fromisoformat(self.ended) if self.ended else datetime.now(timezone.utc)
        return (end - datetime.fromisoformat(self.started)).total_seconds()

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
        part = folder / f".{SUBMISSION_FILE}.{secrets.token_hex(4)}.tmp"
        part.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")
        part.replace(folder / SUBMISSION_FILE)

    @classmethod
    def read_from(cls, folder: Path) -> Self | None:
        """The last submission of the job in `folder`; None if there was none."""
        path = folder / SUBMISSION_FILE
        return cls.read(path) if path.exists() else None
