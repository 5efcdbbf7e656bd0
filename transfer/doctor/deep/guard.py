"""A check that breaks is a finding, too."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

from transfer.doctor.finding import Finding
from transfer.doctor.software import SETUP, in_a_line


def guarded(subject: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """The check's findings; where it raises, one that says what was missing or broke, and where."""
    try:
        return check()
    except ImportError as error:
        return [
            Finding(subject, "missing", f"cannot be tried: {in_a_line(error)}", f"mend the packages first: {SETUP}")
        ]
    except Exception as error:
        return [broken(subject, error)]


def broken(subject: str, error: Exception) -> Finding:
    """The finding that an exception is."""
    if is_out_of_memory(error):
        advice = (
            "see with nvidia-smi what else uses this GPU; with all of its memory free, use more GPUs or fewer images"
        )
        return Finding(subject, "warning", "out of memory", advice)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    advice = (
        "try another GPU (CUDA_VISIBLE_DEVICES) and the pinned versions (make setup); if both fail, report this line"
    )
    return Finding(subject, "wrong", f"broke: {in_a_line(error)}{where}", advice)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device had no room left."""
    return type(error).__name__ == "OutOfMemoryError"
