"""A walk through a folder: its images' names, and what will tell whether they are still the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError
from pretrain.data.names import Names

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What counts as an image: torchvision's ImageFolder's list, in any case."""


@dataclass(frozen=True)
class Scan:
    """What a walk through a folder found.

    Attributes:
        files: the images' names relative to the folder, in order.
        folders: every folder walked through, relative to the top (`.` is the top itself).
        changed: (len(folders), 2) int64: each folder's times of modification and of status change before it was read,
            in nanoseconds.
    """

    files: Names
    folders: tuple[str, ...]
    changed: np.ndarray


def times(folder: Path) -> tuple[int, int]:
    """A folder's times of modification and of status change; they change when a file is added, removed or renamed."""
    facts = folder.stat()
    return facts.st_mtime_ns, facts.st_ctime_ns


def scan(folder: Path) -> Scan:
    """Walk through `folder`; no file is opened or looked up.

    Raises:
        UserError: a folder may not be read.
    """
    files: list[str] = []
    folders: list[str] = []
    changed: list[tuple[int, int]] = []
    for current, names in _walk(folder, changed):
        relative = current.relative_to(folder)
        folders.append(relative.as_posix())
        start = "" if relative == Path() else relative.as_posix() + "/"
        files += [start + n for n in names if n.lower().endswith(EXTENSIONS) and not n.startswith(".")]
    files.sort(key=lambda name: name.replace("/", "\0"))  # part by part: no name holds a NUL, and none sorts before it
    return Scan(Names.of(files), tuple(folders), np.array(changed, dtype=np.int64).reshape(-1, 2))


def _walk(folder: Path, changed: list[tuple[int, int]]) -> Iterator[tuple[Path, list[str]]]:
    """Each folder with its files' names; its times, as they were before it was read, are appended to `changed`."""
    seen: set[str] = set()
    before = {str(folder): _looked_up(folder)}
    for current, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(current)
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            path = Path(current, name)
            before[str(path)] = _looked_up(path)
        changed.append(before.pop(current))
        yield Path(current), names


def _looked_up(folder: Path) -> tuple[int, int]:
    try:
        return times(folder)
    except OSError as error:
        _refuse(error)
        raise


def _refuse(error: OSError) -> None:
    what = f"cannot look into {error.filename}: {error.strerror}"
    raise UserError(f"{what}; mend its permissions or move it away") from error
