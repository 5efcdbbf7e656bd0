"""Turn the exceptions of a check into findings."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

from transfer.doctor.finding import Finding
from transfer.doctor.software import SETUP, one_line


def run_check(subject: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """Run a check and return its findings; an exception becomes a finding that names the file and line."""
    try:
        return check()
    except ImportError as error:
        return [
            Finding(subject, "missing", f"cannot be checked: {one_line(error)}", f"repair the packages first: {SETUP}")
        ]
    except Exception as error:
        return [finding_from_error(subject, error)]


def finding_from_error(subject: str, error: Exception) -> Finding:
    """The finding for an exception."""
    if is_out_of_memory(error):
        advice = "nvidia-smi shows what else uses this GPU; if nothing does, use more GPUs or fewer images"
        return Finding(subject, "warning", "out of memory", advice)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    advice = "try another GPU (CUDA_VISIBLE_DEVICES) and the pinned versions (make setup); if both fail, report this"
    return Finding(subject, "wrong", f"failed: {one_line(error)}{where}", advice)


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device ran out of memory."""
    return type(error).__name__ == "OutOfMemoryError"
