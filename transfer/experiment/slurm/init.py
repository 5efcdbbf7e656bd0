"""`launch.py init`: a site file from what sinfo shows, and a job of a minute to see that it holds."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json, write_text
from transfer.experiment.queue import look
from transfer.experiment.resources import Resources, resources_for
from transfer.experiment.site import read_site, site_file
from transfer.experiment.slurm import check
from transfer.experiment.slurm.check_job import FILE, CheckJob
from transfer.experiment.slurm.executor import submit
from transfer.experiment.slurm.sbatch import Request
from transfer.experiment.slurm.survey import choose, site_text, survey


def write_site(partition: str | None = None) -> Path:
    """Write the user's site file.

    Args:
        partition: where to train; chosen by what sinfo shows unless told.

    Raises:
        UserError: there is one already, or no Slurm here.
    """
    file = site_file()
    if file.exists():
        raise UserError(f"{file} exists; edit it, or move it away and ask again")
    found = survey()
    write_text(file, site_text(choose(found, partition), found))
    return file


def file_check() -> tuple[str, Path]:
    """File the one-minute job with the site's resources, one GPU at most.

    Returns:
        The queue's id, and the folder that its findings come to.

    Raises:
        UserError: sbatch refuses it.
    """
    asked = resources_for("finetune", (read_site().resources,))
    small: dict[str, Any] = {"nodes": 1, "gpus": min(asked.gpus or 0, 1), "tasks": 1, "hours": 1 / 60}
    small |= {"gres": None, "memory_gb": 2.0, "cpus": 1, "signal_seconds": 10, "stage_to": None}
    if asked.gres and small["gpus"]:
        small["gres"] = asked.gres.rpartition(":")[0] + ":1"
    resources = Resources(**{**asked.model_dump(), **small})
    refused = check.refused({"default": resources})
    if refused:
        raise UserError(f"{refused}; mend {site_file()}")
    folder = site_file().parent / "check"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    request = Request("check", resources, [], "", 0, 1, sys.executable)
    return submit(request, folder, [CheckJob(str(folder))])[0], folder


def findings(id_: str, folder: Path, patience: float, tell: Callable[[str], None]) -> dict[str, Any] | None:
    """Wait for what the job found.

    Args:
        id_, folder: from `file_check`.
        patience: seconds.
        tell: is given the job's state whenever it changes.

    Returns:
        None when the job is not over by then.

    Raises:
        UserError: the job ended without a word.
    """
    deadline, last, gone = time.monotonic() + patience, "", 0
    while time.monotonic() < deadline:
        if (folder / FILE).exists():
            found: dict[str, Any] = read_json(folder / FILE)
            return found
        entry = look([id_]).get(id_)
        state = f"{entry.state} {entry.reason}" if entry else "gone"
        if state != last:
            tell(state)
        last = state
        gone += entry is None or not entry.active
        if gone > 3:  # a shared file system may show the file a little later
            raise UserError(f"the check job {id_} ended as {state}; what it said is in {folder}")
        time.sleep(1.0)
    return None
