"""Atomic writes (temporary file, flush, rename), JSON files and digests."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import io
import json
import os
import re
import secrets
import stat
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from ssl_transfer.errors import UserError, nearest, storage_error

JSON_LIMIT, ANNOTATIONS_LIMIT = 64 << 20, 4 << 30
"""Bytes of a JSON file at most: of those that this project writes, and of a data set's annotations."""
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


class _RecordingFile(io.FileIO):
    """A file that remembers why a write failed: torch's zip writer raises a RuntimeError without the reason."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` when the block ends; where the block fails, nothing changes.

    The temporary file is in the same folder, because a rename is atomic only within a file system, and it is flushed to
    disk before the rename.

    Raises:
        StorageError: the disk is full, failing or read-only.
        UserError: the folder may not be written, or `path` is a folder.
    """
    target = Path(path)
    name = temporary_name(target)
    raw: _RecordingFile | None = None
    try:
        if target.exists() and not target.is_file():
            kind = "a folder" if target.is_dir() else "no ordinary file"
            raise UserError(f"cannot write {target}: it is {kind}; give the name of a file")
        target.parent.mkdir(parents=True, exist_ok=True)
        # Not tempfile: its files are private (0600), and the umask cannot be read without changing it for all threads.
        raw = _RecordingFile(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb")
        with io.BufferedWriter(raw) as stream:
            yield stream
            stream.flush()
            os.fsync(raw.fileno())
        name.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            name.unlink(missing_ok=True)
        failure = storage_error(raw.failure if raw and raw.failure else error, target)
        if failure:
            raise failure from error
        if isinstance(error, OSError) and raw is None:
            raise UserError(f"cannot write {target}: {error.strerror}; choose a writable folder") from error
        raise
    _flush_folder(target.parent)


def temporary_name(target: Path) -> Path:
    """A new hidden name in the same folder, for a file that is renamed to `target` once it is complete."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")


def remove_partial_files(folder: Path, names: Iterable[str]) -> None:
    """Remove the temporary files that a killed process left for targets of these names (`*` matches any).

    Call it as the only writer of these targets: then whoever wrote them has ended.
    """
    wanted = [re.compile(r"\." + re.escape(name).replace(r"\*", ".*") + r"\.[0-9a-f]+\.tmp") for name in names]
    for file in folder.iterdir():
        if any(pattern.fullmatch(file.name) for pattern in wanted) and file.is_file():
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
        stream.write(text.encode(errors="backslashreplace"))  # halves of surrogate pairs


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically; raises ValueError for NaN, which JSON lacks."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def open_input(path: str | os.PathLike[str], limit: int = 1 << 62) -> IO[bytes]:
    """Open a regular file of at most `limit` bytes for reading; never waits for a writer of a named pipe.

    Raises:
        OSError: it cannot be opened.
        UserError: it is a folder, a named pipe, a device or a socket, too large, or no name of a file.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:
        raise UserError(f"{str(path)!r} is no name of a file ({error})") from error
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise UserError(f"{path} is {_KINDS.get(stat.S_IFMT(found.st_mode), 'a socket')}, not a file; name a file")
    if found.st_size > limit:
        os.close(handle)
        raise UserError(f"{path} has {found.st_size:,} bytes; such a file has {limit:,} at most: is it the right one?")
    return os.fdopen(handle, "rb")


def read_input(path: str | os.PathLike[str], limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes.

    Raises:
        OSError: it cannot be read.
        UserError: it is no regular file (`open_input`), or larger.
    """
    with open_input(path, limit) as stream:
        return stream.read()  # read(limit) would reserve that much memory


def decode_text(content: bytes, where: str) -> str:
    """UTF-8, or UTF-16 with a byte order mark, as text with `\\n` at the end of each line.

    Raises:
        UserError: another encoding; names the first wrong byte's line.
    """
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"cannot read {where}, line {line}: {error.reason}; save the file as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def describe_unreadable(path: str | os.PathLike[str], error: OSError, what: str = "") -> str:
    """Why a file cannot be read, in one line; for a missing one the similar names of its folder."""
    name = str(path) if len(str(path)) < 300 else f"{str(path)[:100]}…"
    called = f"{what} {name}".strip()
    if not isinstance(error, FileNotFoundError):
        return f"cannot read {called}: {error.strerror}"
    if Path(path).is_symlink():
        return f"{called} is a link to {Path(path).readlink()}, which does not exist"
    folder = Path(path).parent
    if not folder.is_dir():
        return f"{called} does not exist, nor does its folder"
    similar = sorted({file.name for file in folder.iterdir() if file.suffix == Path(path).suffix and file.is_file()})
    return f"{called} does not exist" + (f"; {nearest(Path(path).name, similar)}" if similar else "")


def read_text(path: str | os.PathLike[str], limit: int = JSON_LIMIT) -> str:
    """Read a text file (`decode_text`); raises UserError where it cannot be read."""
    try:
        return decode_text(read_input(path, limit), str(path))
    except OSError as error:
        raise UserError(describe_unreadable(path, error)) from error


def read_json(path: str | os.PathLike[str], limit: int = ANNOTATIONS_LIMIT) -> Any:
    """Read a JSON file.

    Raises:
        UserError: it is missing, no regular file, larger than `limit` bytes, truncated or not JSON; the message names
            file and line.
    """
    try:
        value = json.loads(read_text(path, limit))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg}); is the file truncated?") from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
        raise UserError(f"{path}: not usable JSON ({error})") from error
    return value


def read_json_object(path: str | os.PathLike[str], limit: int = JSON_LIMIT) -> dict[str, Any]:
    """Read a JSON file that holds keys and values; raises UserError as `read_json`, and for any other content."""
    value = read_json(path, limit)
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, not keys and values")
    return value


@contextlib.contextmanager
def expect_shape(path: str | os.PathLike[str], remedy: str) -> Iterator[None]:
    """Within the block, content of `path` is used whose keys and types were not all checked.

    Raises:
        UserError: a key is missing or a value has another type; names the file and ends with `remedy`.
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, LookupError) else " ".join(str(error).split())[:120]
        raise UserError(f"{path} is not as it was written ({what}); {remedy}") from error


def read_tail(path: str | os.PathLike[str], size: int = 1 << 16) -> str:
    """The last `size` bytes of a log, which may be large; empty if there is none, or it is no file."""
    try:
        with open_input(path) as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - size))
            return stream.read(size).decode(errors="replace")
    except (FileNotFoundError, UserError):
        return ""


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file in hex.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open_input(path) as stream:
            while piece := stream.read(1 << 22):
                digest.update(piece)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()


def damaged_record(path: str | os.PathLike[str]) -> str | None:
    """What is damaged in a zip, which is what torch.save writes; None where nothing is.

    torch writes a CRC-32 of every record and never reads it: a flipped bit would be resumed from. The checksum sees
    every error of up to 32 neighbouring bits, and misses one of 4 billion others; it is no proof against intent.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile raises half a dozen types for a damaged file
        if storage_error(error):
            raise
        return str(error) or type(error).__name__
    return None if bad is None else f"the checksum of {bad} does not match"


def md5_of(path: str | os.PathLike[str]) -> str:
    """MD5 of a file in hex; it detects damage, not manipulation."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()
