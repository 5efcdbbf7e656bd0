"""The list of a folder's images, in an order that depends on their names alone."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from common.errors import UserError
from pretrain.data.index_cache import cache_for
from pretrain.data.list_file import read_list
from pretrain.data.names import Names
from pretrain.data.scan import EXTENSIONS, scan

MOST_NUMBERED = 100_000
"""A list file's whole numbers below this are the labels themselves; greater ones are names like any other."""


@dataclass(frozen=True)
class ImageIndex:
    """A folder's images.

    Attributes:
        folder: the folder that the names are relative to.
        files: relative POSIX paths, sorted part by part: ImageFolder's order, where every class is one flat folder.
            A list file's are in the file's order, and may be absolute.
        given: each image's class as a list file names it, empty where it names none; None where folders are classes.
    """

    folder: Path
    files: Sequence[str]
    given: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def _of(self) -> Sequence[str] | None:
        """Each image's class name."""
        if self.given is not None:
            return self.given or None
        if not all("/" in name for name in self.files):
            return None
        return [name.split("/", 1)[0] for name in self.files]

    @cached_property
    def _numbered(self) -> bool:
        """Whether the classes are a list file's whole numbers."""
        return bool(self.given) and all(
            name.isascii() and name.isdigit() and int(name) < MOST_NUMBERED for name in set(self.given or ())
        )

    @cached_property
    def classes(self) -> tuple[str, ...] | None:
        """The classes' names; a label counts in it. None where an image has no class.

        They are the first-level folders that hold images, sorted as ImageFolder sorts, or the words of a list file,
        sorted; where all of those are whole numbers, the numbers from 0 to the greatest.
        """
        if self._of is None:
            return None
        names = set(self._of)
        return tuple(map(str, range(max(map(int, names)) + 1))) if self._numbered else tuple(sorted(names))

    @cached_property
    def labels(self) -> np.ndarray | None:
        """(N,) int64, each image's class: its place in `classes`; None where there are none."""
        if self._of is None or self.classes is None:
            return None
        if self._numbered:
            return np.array([int(name) for name in self._of], dtype=np.int64)
        place = {name: number for number, name in enumerate(self.classes)}
        return np.array([place[name] for name in self._of], dtype=np.int64)

    def path(self, index: int) -> Path:
        """The file of the `index`-th image."""
        return self.folder / self.files[index]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the names in their order: equal where an index number means the same file name.

        The classes that a list file names are part of it.
        """
        names = self.files if isinstance(self.files, Names) else Names.of(self.files)
        digest = hashlib.sha256(names.text)
        if self.given:
            digest.update("\0".join(["", *self.given]).encode(errors="surrogateescape"))
        return digest.hexdigest()


def find_images(root: str, cache: str = "none", list_root: str = "") -> ImageIndex:
    """List the images of `root/train` where there is such a folder, else of `root`, at any depth; or read a list file.

    So ImageNet's folder, any ImageFolder and a flat folder all serve. Links to folders are followed, hidden files
    (`._x.jpg`) and folders are not looked at.

    Args:
        root: a folder, or a text file of paths (`pretrain.data.list_file`).
        cache: where the list of a large folder is kept: `user`, `none`, or a folder (`pretrain.data.index_cache`).
        list_root: what a list file's paths are relative to; empty for the folder that it lies in.

    Raises:
        UserError: no root given, nothing there, it may not be read, or no image in it.
    """
    if not root:
        raise UserError("DATA.ROOT is not set; end the command with: DATA.ROOT /path/to/images")
    top = Path(root).expanduser()
    if not _is_folder(top):
        return ImageIndex(*read_list(top, list_root))
    if list_root:
        raise UserError(f"DATA.LIST_ROOT is set, but DATA.ROOT {top} is a folder; leave DATA.LIST_ROOT empty")
    folder = top / "train" if (top / "train").is_dir() else top
    kept = cache_for(cache, folder)
    files = kept.files(lambda: scan(folder)) if kept else scan(folder).files
    if not len(files):
        raise UserError(f"DATA.ROOT {folder} holds no images ({', '.join(EXTENSIONS)}), at any depth")
    return ImageIndex(folder, files)


def _is_folder(root: Path) -> bool:
    """Whether the data are a folder; else they are a file."""
    try:
        mode = root.stat().st_mode
    except FileNotFoundError as error:
        raise UserError(f"DATA.ROOT {root} does not exist; give a folder of images or a list file") from error
    except OSError as error:
        raise UserError(f"DATA.ROOT {root} cannot be looked into: {error.strerror}") from error
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise UserError(f"DATA.ROOT {root} is neither a folder nor a file")
    return stat.S_ISDIR(mode)
