"""Counts how often files are opened for reading: a shared file system answers each in milliseconds."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_counts: list[tuple[str, Counter[str]]] = []
"""The folder that is watched, and its counts; an audit hook stays for the life of the process."""


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _counts and isinstance(arguments[0], (str, os.PathLike)):
        folder, counts = _counts[-1]
        path, flags = os.path.abspath(os.fspath(arguments[0])), arguments[2] or 0  # noqa: PTH100 (no link is followed)
        if path.startswith(folder) and not flags & (os.O_WRONLY | os.O_RDWR):
            counts[path] += 1


@contextmanager
def file_reads(folder: Path, suffix: str = ".json") -> Iterator[Counter[str]]:
    """Count how often each file below a folder is opened for reading.

    Args:
        folder: the folder.
        suffix: of the files' names.

    Yields:
        Reads by the file's path relative to `folder`; filled in at the end.
    """
    if not getattr(sys, "_file_reads_hook", False):
        sys.addaudithook(_audit)
        sys._file_reads_hook = True  # type: ignore[attr-defined]
    found: Counter[str] = Counter()
    whole = f"{os.path.abspath(folder)}{os.sep}"  # noqa: PTH100
    _counts.append((whole, Counter()))
    try:
        yield found
    finally:
        for path, count in _counts.pop()[1].items():
            if path.endswith(suffix):
                found[path.removeprefix(whole)] += count
