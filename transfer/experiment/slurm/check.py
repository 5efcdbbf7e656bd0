"""Asks sbatch, without filing anything, whether it would take jobs with given resources."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.errors import UserError, nearest
from transfer.experiment.resources import Resources


def call(words: Sequence[str], seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands.

    Raises:
        UserError: it is not here, or does not answer.
    """
    try:
        return subprocess.run(list(words), capture_output=True, text=True, timeout=seconds, check=False)
    except FileNotFoundError as error:
        raise UserError(f"there is no {words[0]} on this machine; ask on a login node of the cluster") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{words[0]} did not answer in {seconds:.0f} s; ask again later") from error


def refused(stages: Mapping[str, Resources], python: str = sys.executable) -> str | None:
    """Why sbatch would refuse a job, for the first stage that it would; None when it takes them all.

    Args:
        stages: what jobs ask for, by the key that says it.
        python: the interpreter that files them.
    """
    asked: list[Resources] = []
    for key, resources in stages.items():
        if resources in asked:
            continue
        asked.append(resources)
        said = _try(resources, python)
        if said is not None:
            return f"{key}: sbatch refuses: {said}{_hint(said, resources)}"
    return None


def _try(resources: Resources, python: str) -> str | None:
    from transfer.experiment.slurm.executor import make_executor
    from transfer.experiment.slurm.sbatch import Request

    with tempfile.TemporaryDirectory() as folder:
        executor = make_executor(Request("check", resources, [], "", 0, 1, python), Path(folder))
        script = Path(folder) / "check.sh"
        script.write_text(executor._make_submission_file_text("true", "check"))
        done = call(["sbatch", "--test-only", str(script)])
    if done.returncode == 0:
        return None
    lines = [line.replace("sbatch: error: ", "").strip() for line in done.stderr.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines))[:300] or f"exit code {done.returncode}"


def _hint(said: str, resources: Resources) -> str:
    if resources.partition is None or "partition" not in said.lower():
        return ""
    known = call(["sinfo", "--noheader", "--format=%R"]).stdout.split()
    return f"; partition {resources.partition}: {nearest(resources.partition, known)}" if known else ""
