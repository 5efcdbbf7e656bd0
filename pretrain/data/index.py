"""The index of the training images, in an order that depends only on their names."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pretrain.data.index_cache import EXTENSIONS, PackedStringArray, open_cache, scan_folder
from pretrain.data.list_file import read_list
from ssl_transfer.errors import UserError

MAX_NUMERIC_CLASS = 100_000
"""Integers below this in a list file are class numbers; larger ones are class names like any other."""


@dataclass(frozen=True)
class ImageIndex:
    """Paths and classes of the training images.

    Attributes:
        folder: the folder that the paths are relative to.
        files: relative POSIX paths, sorted part by part: ImageFolder's order, if every class is one flat folder. Those
            of a list file are in the file's order, and may be absolute.
        listed_classes: each image's class from a list file, empty if it has none; None if folders are classes.
    """

    folder: Path
    files: Sequence[str]
    listed_classes: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def _image_classes(self) -> Sequence[str] | None:
        """Each image's class name; None without classes."""
        if self.listed_classes is not None:
            return self.listed_classes or None
        if not all("/" in name for name in self.files):
            return None
        return [name.split("/", 1)[0] for name in self.files]

    @cached_property
    def _is_numeric(self) -> bool:
        """Whether the classes are integers from a list file."""
        return bool(self.listed_classes) and all(
            name.isascii() and name.isdigit() and int(name) < MAX_NUMERIC_CLASS
            for name in set(self.listed_classes or ())
        )

    @cached_property
    def classes(self) -> tuple[str, ...] | None:
        """Class names, indexed by label. None if an image has no class.

        They are the first-level folders with images, sorted as ImageFolder sorts them, or the sorted names of a list
        file. If all names are integers, they are the integers from 0 to the largest.
        """
        if self._image_classes is None:
            return None
        names = set(self._image_classes)
        return tuple(map(str, range(max(map(int, names)) + 1))) if self._is_numeric else tuple(sorted(names))

    @cached_property
    def labels(self) -> np.ndarray | None:
        """(N,) int64, each image's class as an index of `classes`; None without classes."""
        if self._image_classes is None or self.classes is None:
            return None
        if self._is_numeric:
            return np.array([int(name) for name in self._image_classes], dtype=np.int64)
        numbers = {name: number for number, name in enumerate(self.classes)}
        return np.array([numbers[name] for name in self._image_classes], dtype=np.int64)

    def path(self, index: int) -> Path:
        """The file of the `index`-th image."""
        return self.folder / self.files[index]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the file names in order, and of the classes from a list file."""
        files = self.files
        digest = hashlib.sha256(
            (files if isinstance(files, PackedStringArray) else PackedStringArray.from_strings(files)).text
        )
        if self.listed_classes:
            digest.update("\0".join(["", *self.listed_classes]).encode(errors="surrogateescape"))
        return digest.hexdigest()


def find_images(root: str, cache: str = "none", list_root: str = "") -> ImageIndex:
    """Index the images below `root/train` if that folder exists, else below `root`; or read a list file.

    This covers ImageNet's layout, any ImageFolder, and a flat folder. Links to folders are followed; hidden files
    (`._x.jpg`) and folders are skipped.

    Args:
        root: a folder, or a text file of paths (`pretrain.data.list_file`).
        cache: where to cache the list of a large folder: `user`, `none`, or a folder (`pretrain.data.index_cache`).
        list_root: the folder that a list file's paths are relative to; empty for the file's own folder.

    Raises:
        UserError: `root` is empty, missing or unreadable, or it holds no image.
    """
    if not root:
        raise UserError("DATA.ROOT is not set; end the command with: DATA.ROOT /path/to/images")
    top = Path(root).expanduser()
    if not _is_folder(top):
        return ImageIndex(*read_list(top, list_root))
    if list_root:
        raise UserError(f"DATA.LIST_ROOT is set, but DATA.ROOT {top} is a folder; leave DATA.LIST_ROOT empty")
    folder = top / "train" if (top / "train").is_dir() else top
    opened = open_cache(cache, folder)
    files = opened.files(lambda: scan_folder(folder)) if opened else scan_folder(folder).files
    if not len(files):
        raise UserError(f"DATA.ROOT {folder} holds no images ({', '.join(EXTENSIONS)}), at any depth")
    return ImageIndex(folder, files)


def _is_folder(root: Path) -> bool:
    try:
        mode = root.stat().st_mode
    except FileNotFoundError as error:
        raise UserError(f"DATA.ROOT {root} does not exist; give a folder of images or a list file") from error
    except OSError as error:
        raise UserError(f"DATA.ROOT {root} cannot be read: {error.strerror}") from error
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise UserError(f"DATA.ROOT {root} is neither a folder nor a file")
    return stat.S_ISDIR(mode)
