"""`filed.json`: which job of the cluster's queue was filed for a job of the graph."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from common.files import read_json

FORMAT = "filed/1"
FILE = "filed.json"


@dataclass(frozen=True)
class Filed:
    """A job in a cluster's queue.

    Attributes:
        id: the queue's id, `123` or `123_4`. A job of the queue with another id leaves this folder alone.
        at: when it was filed, UTC, ISO 8601.
        attempt: how many attempts there had been by then.
        requeues: how often it may be put back into the queue.
        name: the job's name.
        fingerprint: the job's fingerprint.
    """

    id: str
    at: str
    attempt: int
    requeues: int
    name: str
    fingerprint: str

    def write(self, folder: Path) -> None:
        """Write it into the job's folder.

        It is renamed into place but not flushed: a flush for each of some hundred jobs takes long, and a job whose
        record was lost with the power runs nothing.
        """
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".{FILE}.{secrets.token_hex(4)}.tmp"
        part.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n", encoding="utf-8")
        part.replace(folder / FILE)


def read_filed(folder: Path) -> Filed | None:
    """The job's last filing; None when it was never filed."""
    path = folder / FILE
    if not path.exists():
        return None
    content = read_json(path)
    content.pop("format")
    return Filed(**content)
