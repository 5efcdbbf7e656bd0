"""Unpacking one folder of a tar or zip archive, trusting no name in it."""

from __future__ import annotations

import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import IO

from common.errors import UserError

Member = tuple[PurePosixPath, int, Callable[[], IO[bytes]]]
"""A regular file: its path inside the archive, its size, and what opens it."""
BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)
"""What the standard library raises for an archive that is cut short, damaged or none at all."""


def unpacked_bytes(archive: Path, inside: str) -> int:
    """How much room the files below `inside` need.

    Raises:
        UserError: it is not a whole archive.
    """
    return sum(size for _, size, _ in _members(archive, inside))


def unpack(archive: Path, inside: str, target: Path, report: Callable[[int], None] | None = None) -> int:
    """Unpack the regular files below `inside` into `target`; links and anything else are left out.

    Args:
        archive: a `.tar` (also compressed) or a `.zip`.
        inside: a folder in it.
        target: where its content goes.
        report: called with the bytes of each file written.

    Returns:
        How many files were written.

    Raises:
        UserError: it is not a whole archive, holds nothing there, names a path that leads out of it, or the disk is
            full.
    """
    count = 0
    for path, size, opened in _members(archive, inside):
        place = target / path
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with closing(opened()) as source, open(place, "wb") as stream:
                shutil.copyfileobj(source, stream, 1 << 20)
                written = stream.tell()
        except BROKEN as error:
            raise _broken(archive, error) from error
        except OSError as error:
            raise UserError(f"cannot write {place}: {error.strerror or error}; make room and ask again") from error
        if written != size:
            raise UserError(f"{archive}: {path} should have {size} bytes and has {written}; fetch the archive again")
        count += 1
        if report:
            report(size)
    if not count:
        raise UserError(f"{archive} holds no files below {inside}/; is it the right archive?")
    return count


def _members(archive: Path, inside: str) -> Iterator[Member]:
    """The regular files below `inside`, their paths relative to it."""
    try:
        yield from _zip_members(archive, inside) if archive.suffix == ".zip" else _tar_members(archive, inside)
    except BROKEN as error:
        raise _broken(archive, error) from error


def _tar_members(archive: Path, inside: str) -> Iterator[Member]:
    with tarfile.open(archive) as tar:
        for member in tar:
            path = _below(member.name, inside, archive)
            if path is not None and member.isfile():
                yield path, member.size, lambda member=member: tar.extractfile(member)  # type: ignore[misc]


def _zip_members(archive: Path, inside: str) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as packed:
        for member in packed.infolist():
            path = _below(member.filename, inside, archive)
            kind = member.external_attr >> 28  # 0o10 is a regular file, 0 where the archive was not made on Unix
            if path is not None and not member.is_dir() and kind in (0, 0o10):
                yield path, member.file_size, lambda member=member: packed.open(member)  # type: ignore[misc]


def _below(name: str, inside: str, archive: Path) -> PurePosixPath | None:
    """A member's path relative to `inside`; None for one that lies elsewhere.

    Raises:
        UserError: it is absolute or leads upwards.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{archive}: the member {name!r} leads out of the archive; refused")
    top = PurePosixPath(inside)
    return path.relative_to(top) if top in path.parents else None


def _broken(archive: Path, error: Exception) -> UserError:
    return UserError(f"{archive} is not a whole archive ({' '.join(str(error).split())}); fetch it again")
