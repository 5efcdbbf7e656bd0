"""One trial from request to result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import processes
from common.errors import Preempted
from common.files import read_json
from transfer.engine import result
from transfer.engine.fit import EVALUATION, fit, spawned_fit
from transfer.engine.prepare import Request, prepare


@dataclass(frozen=True)
class Outcome:
    """How a request ended.

    Attributes:
        status: `done`, `diverged`, `already` (it had ended before) or `evaluated`.
        content: of `result.json`, or of `evaluation.json`.
        file: where that lies.
    """

    status: str
    content: dict[str, Any]
    file: Path


def run(request: Request) -> Outcome:
    """Run a trial, or find that it has been run.

    Raises:
        UserError: anything about the request is wrong; nothing has been trained.
        Preempted: stopped on a signal, after a checkpoint.
    """
    prepared, task = prepare(request)
    file = prepared.output / (EVALUATION if request.eval_only else result.FILE)
    if not request.eval_only and file.is_file():
        return Outcome("already", read_json(file), file)
    if processes.place_from_environment() is None and prepared.processes > 1:
        ended = spawned_fit(prepared)
    else:
        ended = processes.start(fit, (prepared, task))
    if not ended:
        raise Preempted(f"{prepared.output} holds a checkpoint")
    content = read_json(file)
    return Outcome("evaluated" if request.eval_only else str(content["status"]), content, file)
