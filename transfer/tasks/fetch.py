"""Fetching a public set: download, verify, unpack beside, rename into place; asked again, only what is missing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from common.console import Progress, megabytes
from common.errors import UserError, nearest
from common.files import md5_of
from transfer.tasks.public import PUBLIC, Archive, Folder
from transfer.tasks.unpack import unpack, unpacked_bytes
from transfer.weights.download import download

ARCHIVES = ".archives"
"""The folder below the data root that keeps what was downloaded."""
STAGING = ".unpacking"
"""The folder below the data root where a folder is unpacked before it is renamed into place."""
SPARE = 1 << 28
"""Bytes that are to stay free."""

Say = Callable[[str], None]


def fetch(name: str, root: Path, mirror: str | None = None, keep: bool = True, say: Say = lambda _: None) -> list[str]:
    """Bring one public set below a data root.

    A folder that is there already is left alone. Archives are kept below `root/.archives`, where one that was brought
    by hand serves, too.

    Args:
        name: `voc2007`, `voc2012` or `coco`.
        root: the data root.
        mirror: a URL under which the archives lie by their names; None: where they are published.
        keep: keep the archives once they are unpacked.
        say: told what is being done, a line each.

    Returns:
        The folders that were made.

    Raises:
        UserError: no such set, no room, the server fails, or the bytes are not the published ones.
    """
    if name not in PUBLIC:
        raise UserError(f"download {name}: no such set; {nearest(name, PUBLIC)}")
    made = []
    with _locked(root):
        missing = [folder for folder in PUBLIC[name] if not (root / folder.target).exists()]
        for folder in PUBLIC[name]:
            if folder not in missing:
                say(f"{root / folder.target} is there already; nothing in it is touched")
        _require_room(root, sum(_to_come(root, folder) for folder in missing), f"downloading and unpacking {name}")
        for folder in missing:
            archives = [_archive(archive, root, mirror, say) for archive in folder.archives]
            _place(folder, archives, root, say)
            made.append(folder.target)
            if not keep:
                for archive in archives:
                    archive.unlink()
                    say(f"removed {archive}")
    return made


def _archive(archive: Archive, root: Path, mirror: str | None, say: Say) -> Path:
    """The verified archive, downloaded where it is not there."""
    file = root / ARCHIVES / archive.name
    url = archive.url if mirror is None else f"{mirror.rstrip('/')}/{archive.name}"
    brought = file.exists()
    if not brought:
        say(f"downloading {url}")
        download(url, file, megabytes(archive.name))
    fault = _fault(archive, file)
    if fault and brought:
        raise UserError(f"{file} {fault}; remove it, then ask again")
    if fault:
        file.unlink()
        raise UserError(f"{url} {fault}; nothing of it is kept: ask again, or another --mirror")
    say(f"{archive.name}: MD5 {archive.md5}, as published")
    return file


def _fault(archive: Archive, file: Path) -> str:
    """How a file differs from the published one; empty where it does not."""
    size = file.stat().st_size
    if size != archive.bytes:
        return f"has {size} bytes, published are {archive.bytes}"
    digest = md5_of(file)
    return "" if digest == archive.md5 else f"has the MD5 {digest}, published is {archive.md5}"


def _place(folder: Folder, archives: list[Path], root: Path, say: Say) -> None:
    """Unpack beside, flush, and rename: the folder appears whole or not at all."""
    staging = root / STAGING / folder.target
    if staging.exists():  # of a run that was killed
        shutil.rmtree(staging)
    total = sum(unpacked_bytes(archive, folder.inside) for archive in archives)
    _require_room(root, total, f"unpacking {folder.target}")
    say(f"unpacking {', '.join(archive.name for archive in archives)}")
    progress = Progress(total // 1_000_000 or 1, f"{folder.target}, MB")
    done = 0

    def report(size: int) -> None:
        nonlocal done
        before, done = done, done + size
        progress.step(done // 1_000_000 - before // 1_000_000)

    files = sum(unpack(archive, folder.inside, staging, report) for archive in archives)
    os.sync()  # one flush for tens of thousands of small files
    target = root / folder.target
    target.parent.mkdir(parents=True, exist_ok=True)
    staging.rename(target)
    with contextlib.suppress(OSError):  # not empty: another folder of the set is still to come
        staging.parent.rmdir()
        (root / STAGING).rmdir()
    say(f"{target}: {files} files")


def _to_come(root: Path, folder: Folder) -> int:
    """Bytes that a folder's download and unpacking will take, as far as its archives' sizes tell.

    Images do not shrink in an archive, so unpacked they need about as much again; what they need exactly is looked up
    before they are unpacked.
    """
    unpacked = sum(archive.bytes for archive in folder.archives)
    return unpacked + sum(archive.bytes - _there(root / ARCHIVES / archive.name) for archive in folder.archives)


def _there(file: Path) -> int:
    part = file.with_name(file.name + ".part")
    found = file if file.exists() else part
    return found.stat().st_size if found.exists() else 0


def _require_room(root: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(root).free
    if needed and needed + SPARE > free:
        raise UserError(
            f"{what} needs {_gigabytes(needed)} GB below {root}, {_gigabytes(free)} GB are free; "
            "make room or give another ROOT"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f}"


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One fetch at a time below a data root."""
    try:
        (root / ARCHIVES).mkdir(parents=True, exist_ok=True)
        stream = open(root / ARCHIVES / ".lock", "w")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise UserError(f"cannot write below {root}: {error.strerror}; choose another ROOT") from error
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # let go when the file is closed, and by the kernel after a kill
        yield
