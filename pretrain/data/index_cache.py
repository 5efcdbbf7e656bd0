"""The list of a folder's images, kept, so that ImageNet's 1.28 million files are listed once."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from common.errors import UserError
from common.files import atomic_write
from pretrain.data.names import Names
from pretrain.data.scan import EXTENSIONS, Scan, times

MAGIC = b"image-index/1\n"
FROM = 10_000
"""Images from which on a folder's list is kept in the user's cache; a smaller one is listed in a moment."""

SETTLED = 2_000_000_000
"""Nanoseconds after which a folder's times can be trusted to change with the next file that is added."""

_log = logging.getLogger(__name__)


def cache_for(where: str, folder: Path) -> IndexCache | None:
    """The cache of `folder`'s list that DATA.INDEX_CACHE asks for.

    Args:
        where: `user` ($XDG_CACHE_HOME or ~/.cache, for large folders), `none`, or a folder.
        folder: the folder of images.
    """
    if where == "none":
        return None
    if where != "user":
        return IndexCache(Path(where).expanduser(), folder, 0)
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return IndexCache(Path(home).expanduser() / "ssl-detection-transfer" / "index", folder, FROM)


class IndexCache:
    """One folder's list in a cache file.

    The list is believed while every folder below has the times of modification and status change that it had before it
    was read: adding, removing or renaming a file or folder changes both, and the second cannot be set back by a tool
    such as rsync or tar. Only the folders are looked up, not the files. What that does not see: a file whose content
    changed (the list holds names only), and a network file system that shows old times for a while; a file that is gone
    is named when it is opened.

    Several processes may ask at once: the first lists the folder, the others wait and read what it wrote.

    Args:
        cache: the folder of cache files; created when the first is written.
        folder: the folder of images.
        least: how many images a list must have to be kept.
    """

    def __init__(self, cache: Path, folder: Path, least: int) -> None:
        self.folder, self.least = folder, least
        name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:32]
        self.file, self.lock = cache / f"{name}.index", cache / "lock"

    def files(self, scan: Callable[[], Scan]) -> Names:
        """The images' names: from the cache file where it holds, else from `scan`, which is then kept."""
        found = self._read()
        if found is not None:
            return found
        with self._alone():
            found = self._read()  # another process may have written it meanwhile
            return found if found is not None else self._scan(scan)

    def _scan(self, scan: Callable[[], Scan]) -> Names:
        start, began = time.monotonic(), time.time_ns()
        found = scan()
        if len(found.files) < self.least:
            return found.files
        seconds = time.monotonic() - start
        found.changed[found.changed.max(axis=1) > began - SETTLED] = -1  # too young: a change may not show in the time
        try:
            self._write(found)
            _log.info(f"listed {len(found.files)} images of {self.folder} in {seconds:.1f} s; kept in {self.file}")
        except (UserError, OSError) as error:
            _log.warning(f"the list of {self.folder} is not kept, the next run makes it anew: {error}")
        return found.files

    def _read(self) -> Names | None:
        """The names, where the file is whole and no folder changed; else None."""
        try:
            content = self.file.read_bytes()
            names, folders, changed = _unpack(content, self._head())
            now = [times(self.folder / folder) for folder in folders]
        except (OSError, ValueError):  # not there, not whole, or a folder is gone
            return None
        return names if np.array_equal(np.array(now, dtype=np.int64).reshape(-1, 2), changed) else None

    def _write(self, found: Scan) -> None:
        with atomic_write(self.file) as stream:
            for part in _pack(found, self._head()):
                stream.write(part)

    def _head(self) -> dict[str, object]:
        """What a cache file must say it was made for."""
        return {"folder": os.fsencode(os.path.realpath(self.folder)).hex(), "extensions": list(EXTENSIONS)}

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the cache folder's lock; where there can be none, go on without: the file is written atomically."""
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


def _pack(found: Scan, head: dict[str, object]) -> list[bytes]:
    """Magic, the head's length, the head (JSON with the parts' lengths and CRCs), the parts."""
    folders = Names.of(found.folders)
    parts = [found.files.text, found.files.starts.tobytes(), folders.text, folders.starts.tobytes()]
    parts.append(found.changed.tobytes())
    sums = [[len(part), zlib.crc32(part)] for part in parts]
    text = json.dumps({**head, "parts": sums}).encode()
    return [MAGIC, len(text).to_bytes(8, "little"), zlib.crc32(text).to_bytes(4, "little"), text, *parts]


def _unpack(content: bytes, head: dict[str, object]) -> tuple[Names, Names, np.ndarray]:
    """`_pack` undone: the names, the folders and their times.

    Raises:
        ValueError: it is cut short, damaged, or another folder's.
    """
    start = len(MAGIC) + 12
    length = int.from_bytes(content[len(MAGIC) : start - 4], "little")
    text = content[start : start + length]
    if not content.startswith(MAGIC) or zlib.crc32(text) != int.from_bytes(content[start - 4 : start], "little"):
        raise ValueError("not an index file, or damaged")
    described = json.loads(text)
    sums = described.pop("parts")
    if described != head:
        raise ValueError("the index of another folder")
    place, parts = start + length, []
    for size, crc in sums:
        parts.append(content[place : place + size])
        place += size
        if len(parts[-1]) != size or zlib.crc32(parts[-1]) != crc:
            raise ValueError("damaged")
    names, starts, folders, folder_starts, changed = parts
    numbers = [np.frombuffer(part, dtype=np.int64) for part in (starts, folder_starts, changed)]
    return Names(names, numbers[0]), Names(folders, numbers[1]), numbers[2].reshape(-1, 2)
