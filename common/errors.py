"""Errors that are the user's to mend: one line, exit 2, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Wrong use or bad input.

    The message is one line that says what is wrong, where (file, key, line) and what to do.
    `common.console.run` prints it and exits with 2; everything else that is raised is our bug and keeps its traceback.
    """


class Again(Exception):
    """The work was stopped on purpose (signal, preemption) after a checkpoint: the same command continues it."""


def nearest(word: str, valid: Iterable[str], count: int = 3) -> str:
    """A hint that lists the valid names nearest to `word`, or some of them when none is near.

    Args:
        word: what the user wrote.
        valid: every name that would have been right.
        count: how many to list at most.

    Returns:
        ``"did you mean A, B?"`` or ``"valid: A, B, C, …"``.
    """
    names = sorted(set(valid))
    lower = {name.lower(): name for name in names}
    close = [lower[m] for m in difflib.get_close_matches(word.lower(), list(lower), n=count, cutoff=0.6)]
    if close:
        return f"did you mean {', '.join(close)}?"
    if not names:
        return "none is valid here"
    more = ", …" if len(names) > 12 else ""
    return f"valid: {', '.join(names[:12])}{more}"
