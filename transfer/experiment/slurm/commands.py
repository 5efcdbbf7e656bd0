"""A job's command lines as they run on the cluster: the snapshot's code, the container's Python, the staged data."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from common import environment
from transfer.experiment.graph import Job

PYTHON = "{python}"
"""Stands for whatever Python runs the job: it may be a container's."""


def rewritten(job: Job, code: Path | None, python: str) -> Job:
    """The job with its commands' paths below the checkout moved to the snapshot, and Python left open.

    Args:
        job: as in the graph.
        code: the snapshot; None to run the checkout itself.
        python: the interpreter that files the job.
    """
    return replace(job, commands=tuple(tuple(_word(word, code, python) for word in words) for words in job.commands))


def _word(word: str, code: Path | None, python: str) -> str:
    if word == python:
        return PYTHON
    root = f"{environment.ROOT}/"
    if code is not None and word.startswith(root) and (code / word[len(root) :]).exists():
        return str(code / word[len(root) :])
    return word


def here(job: Job, data: str | None) -> Job:
    """The job with this process's Python, and with the staged copy of its data root if there is one."""
    words = {PYTHON: sys.executable}
    if data is not None and job.data is not None:
        words[job.data] = data
    return replace(job, commands=tuple(tuple(words.get(word, word) for word in one) for one in job.commands))
