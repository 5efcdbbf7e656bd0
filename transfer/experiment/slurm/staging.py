"""Data on a node's own disk: copied there once a node, by whichever process comes first."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

from common.errors import UserError
from transfer.experiment.locks import FileLock

DONE = ".staged"


def stage(source: str, folder: str, patience: float = 6 * 3600) -> str:
    """Copy a data root below a folder of this node, unless it is there.

    Links are followed (a data root is often made of links). A copy that was broken off is taken up: what is there with
    the same size is kept.

    Args:
        source: the data root.
        folder: on the node's own disk; `$VARIABLES` are this process's.
        patience: seconds to wait for another process of this node that is copying.

    Returns:
        The copy's path.

    Raises:
        UserError: the folder cannot be written, the disk is full, or the other process takes too long.
    """
    where = os.path.expandvars(folder)
    if "$" in where:
        raise UserError(f"stage_to: {folder}: this node does not set that variable; give a folder that exists there")
    target = Path(where) / f"{Path(source).name}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"
    lock = FileLock(target.with_name(f"{target.name}.lock"))
    deadline = time.monotonic() + patience
    while not (target / DONE).exists():
        if not lock.acquire(patience=1.0):
            if time.monotonic() > deadline:
                raise UserError(f"stage_to: another process has been copying to {target} for {patience:.0f} s")
            continue
        with lock:
            if not (target / DONE).exists():
                _copy(Path(source), target)
                (target / DONE).touch()
    return str(target)


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copytree(source, target, copy_function=_copy_file, dirs_exist_ok=True)
    except (OSError, shutil.Error) as error:
        raise UserError(
            f"stage_to: cannot copy {source} to {target}: {str(error)[:200]}; choose another disk"
        ) from error


def _copy_file(source: str, target: str) -> str:
    there, here = Path(source).stat(), Path(target)
    if not (here.exists() and here.stat().st_size == there.st_size and here.stat().st_mtime_ns == there.st_mtime_ns):
        part = f"{target}.part"
        shutil.copyfile(source, part)
        os.utime(part, ns=(there.st_atime_ns, there.st_mtime_ns))
        Path(part).replace(target)
    return target
