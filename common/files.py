"""Atomic writes (temporary file, flush, rename), JSON files and digests."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from common.errors import UserError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` when the block ends; where the block fails, nothing changes.

    The temporary file is in the same folder, because a rename is atomic only within a file system, and it is flushed to
    disk before the rename.

    Raises:
        UserError: the folder cannot be written, the disk is full, or `path` is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise UserError(f"cannot write {target}: it is a folder; give the name of a file")
    name = temporary_name(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Not tempfile: its files are private (0600), and the umask cannot be read without changing it for all threads.
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}; choose a writable folder") from error
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        name.replace(target)
    except BaseException as error:
        name.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"cannot write {target}: {error.strerror}; free some space and run the command again"
            ) from error
        raise
    _flush_folder(target.parent)


def temporary_name(target: Path) -> Path:
    """A new hidden name in the same folder, for a file that is renamed to `target` once it is complete."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")


def remove_partial_files(folder: Path, names: Iterable[str]) -> None:
    """Remove the temporary files that a killed process left for targets of these names (`*` matches any)."""
    for name in names:
        for file in folder.glob(f".{name}.*.tmp"):
            file.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Flush the rename to disk, where the file system allows it for folders."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically."""
    with atomic_write(path) as stream:
        stream.write(text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically; raises ValueError for NaN, which JSON lacks."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        UserError: it is missing, truncated or not JSON; the message names file and line.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg}); is the file truncated?") from error


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file in hex.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            while piece := stream.read(1 << 22):
                digest.update(piece)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()


def md5_of(path: str | os.PathLike[str]) -> str:
    """MD5 of a file in hex; it detects damage, not manipulation."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()
