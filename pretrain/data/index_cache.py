"""Scan a folder for images and cache the list, so that ImageNet's 1.28 million files are listed only once."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, overload

import numpy as np

from ssl_transfer.errors import UserError
from ssl_transfer.files import atomic_write

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""File name extensions of images: those of torchvision's ImageFolder, in upper or lower case."""

MIN_CACHED = 10_000
"""Images from which on a list is cached below the user's cache folder; a shorter list is scanned in a moment."""

SETTLE_NS = 2_000_000_000
"""Nanoseconds after which the next change of a folder is sure to change the folder's timestamps."""

_log = logging.getLogger(__name__)


class PackedStringArray(Sequence[str]):
    """A sequence of strings stored in two arrays: 1.28 million names without as many Python objects.

    Reading an item changes no reference count but the arrays', so the memory stays shared with forked loader workers.

    Args:
        text: the strings in UTF-8 (undecodable bytes of file names are kept), joined by newlines.
        starts: (N + 1,) int64, where each string starts in `text`; the last is one past its end, plus one.
    """

    def __init__(self, text: bytes, starts: np.ndarray) -> None:
        self.text, self.starts = text, starts

    @classmethod
    def from_strings(cls, strings: Iterable[str]) -> PackedStringArray:
        """Pack strings in the order given."""
        parts = [string.encode(errors="surrogateescape") for string in strings]
        starts = np.zeros(len(parts) + 1, dtype=np.int64)
        np.cumsum([len(part) + 1 for part in parts], out=starts[1:])
        return cls(b"\n".join(parts), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start, end = int(self.starts[index]), int(self.starts[index + 1]) - 1
        return self.text[start:end].decode(errors="surrogateescape")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    def __hash__(self) -> int:
        return hash(self.text)


@dataclass(frozen=True)
class FolderScan:
    """Result of `scan_folder`.

    Attributes:
        files: the images' paths relative to the folder, sorted part by part.
        folders: every folder that was scanned, relative to the top folder (`.` is the top folder itself).
        times: (len(folders), 2) int64, `folder_times` of each folder before it was scanned.
    """

    files: PackedStringArray
    folders: tuple[str, ...]
    times: np.ndarray


def folder_times(folder: Path) -> tuple[int, int]:
    """A folder's mtime and ctime in nanoseconds; both change when a file is added, removed or renamed."""
    status = folder.stat()
    return status.st_mtime_ns, status.st_ctime_ns


def scan_folder(folder: Path) -> FolderScan:
    """List the images below `folder` without opening a file. Links to folders are followed.

    Raises:
        UserError: a folder cannot be read.
    """
    files: list[str] = []
    folders: list[str] = []
    times: list[tuple[int, int]] = []
    for current, names in _walk(folder, times):
        relative = current.relative_to(folder)
        folders.append(relative.as_posix())
        start = "" if relative == Path() else relative.as_posix() + "/"
        files += [start + n for n in names if n.lower().endswith(EXTENSIONS) and not n.startswith(".")]
    files.sort(key=lambda name: name.replace("/", "\0"))  # part by part: NUL sorts first and is in no file name
    return FolderScan(
        PackedStringArray.from_strings(files), tuple(folders), np.array(times, dtype=np.int64).reshape(-1, 2)
    )


def _walk(folder: Path, times: list[tuple[int, int]]) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder with its file names; append to `times` its timestamps from before it was read."""
    seen: set[str] = set()
    before = {str(folder): _times_or_raise(folder)}
    for current, folders, names in os.walk(folder, followlinks=True, onerror=_raise_unreadable):
        real = os.path.realpath(current)
        if real in seen:  # a link to a parent folder
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            path = Path(current, name)
            before[str(path)] = _times_or_raise(path)
        times.append(before.pop(current))
        yield Path(current), names


def _times_or_raise(folder: Path) -> tuple[int, int]:
    try:
        return folder_times(folder)
    except OSError as error:
        _raise_unreadable(error)
        raise


def _raise_unreadable(error: OSError) -> None:
    what = f"cannot read folder {error.filename}: {error.strerror}"
    raise UserError(f"{what}; correct its permissions or move it away") from error


def open_cache(where: str, folder: Path) -> IndexCache | None:
    """The cache that DATA.INDEX_CACHE selects for `folder`; None for `none`.

    Args:
        where: `user` ($XDG_CACHE_HOME or ~/.cache, for large folders), `none`, or a folder.
        folder: the folder of images.
    """
    if where == "none":
        return None
    if where != "user":
        return IndexCache(Path(where).expanduser(), folder, 0)
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return IndexCache(Path(home).expanduser() / "ssl-detection-transfer" / "index", folder, MIN_CACHED)


class IndexCache:
    """Cache file with the list of one folder's images.

    The list is valid while every scanned folder has the mtime and ctime that it had before the scan. Adding, removing
    or renaming a file changes both, and tools such as rsync or tar cannot set back the ctime. Only folders are checked,
    not files. Not detected: a file with new content (the list holds names only), and changes on a network file system
    that reports old timestamps for a while. A file that is gone is named when it is opened.

    Processes may share the cache: the first one scans the folder, the others wait and read the file it wrote.

    Args:
        cache: the folder of cache files; created with the first file.
        folder: the folder of images.
        min_images: shorter lists are not cached.
    """

    def __init__(self, cache: Path, folder: Path, min_images: int) -> None:
        self.folder, self.min_images = folder, min_images
        name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:32]
        self.file, self.lock = cache / f"{name}.npz", cache / "lock"

    def files(self, scan: Callable[[], FolderScan]) -> PackedStringArray:
        """The images' paths: from the cache file if it is valid, else from `scan`, whose result is cached."""
        found = self._read()
        if found is not None:
            return found
        with self._locked():
            found = self._read()  # another process may have written it meanwhile
            return found if found is not None else self._scan(scan)

    def _scan(self, scan: Callable[[], FolderScan]) -> PackedStringArray:
        start, start_ns = time.monotonic(), time.time_ns()
        found = scan()
        if len(found.files) < self.min_images:
            return found.files
        seconds = time.monotonic() - start
        found.times[found.times.max(axis=1) > start_ns - SETTLE_NS] = -1  # too recent: never valid
        try:
            self._write(found)
            _log.info(f"listed {len(found.files)} images of {self.folder} in {seconds:.1f} s; cached in {self.file}")
        except (UserError, OSError) as error:
            _log.warning(f"the list of {self.folder} is not cached, the next run scans it again: {error}")
        return found.files

    def _read(self) -> PackedStringArray | None:
        """The cached list; None if the file is missing, damaged, of another folder, or a folder changed."""
        try:
            content = self.file.read_bytes()
            if content[:32] != hashlib.sha256(content[32:]).digest():
                return None
            with np.load(io.BytesIO(content[32:]), allow_pickle=False) as arrays:
                if str(arrays["key"]) != self._key():
                    return None
                folders = PackedStringArray(arrays["folders"].tobytes(), arrays["folder_starts"])
                files, cached_times = PackedStringArray(arrays["files"].tobytes(), arrays["starts"]), arrays["times"]
            current = [folder_times(self.folder / folder) for folder in folders]
        except OSError:  # no such file, or a folder is gone
            return None
        return files if np.array_equal(np.array(current, dtype=np.int64).reshape(-1, 2), cached_times) else None

    def _write(self, found: FolderScan) -> None:
        """Write SHA-256 of the rest, then an .npz archive."""
        folders, buffer = PackedStringArray.from_strings(found.folders), io.BytesIO()
        np.savez(
            buffer,
            key=np.array(self._key()),
            files=np.frombuffer(found.files.text, dtype=np.uint8),
            starts=found.files.starts,
            folders=np.frombuffer(folders.text, dtype=np.uint8),
            folder_starts=folders.starts,
            times=found.times,
        )
        with atomic_write(self.file) as stream:
            stream.write(hashlib.sha256(buffer.getbuffer()).digest())
            stream.write(buffer.getbuffer())

    def _key(self) -> str:
        """What a cache file is valid for."""
        return json.dumps({"folder": os.fsencode(os.path.realpath(self.folder)).hex(), "extensions": list(EXTENSIONS)})

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the cache folder's lock; without one where it cannot be made, as files are written atomically."""
        with contextlib.ExitStack() as stack:
            try:
                self.lock.parent.mkdir(parents=True, exist_ok=True)
                _lock(stack.enter_context(open(self.lock, "ab")))
            except OSError:
                pass
            yield


def _lock(stream: IO[bytes]) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _log.info("waiting for another process that lists a folder of images")
        fcntl.flock(stream, fcntl.LOCK_EX)
