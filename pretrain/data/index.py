"""The list of a folder's images, in an order that depends on their names alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from common.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What counts as an image: torchvision's ImageFolder's list, in any case."""


@dataclass(frozen=True)
class ImageIndex:
    """A folder's images.

    Attributes:
        folder: the folder that the names are relative to.
        files: relative POSIX paths, sorted part by part: ImageFolder's order, where every class is one flat folder.
    """

    folder: Path
    files: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the first-level folders that hold images, sorted as ImageFolder sorts; a label counts in it.

        None where an image lies in no such folder.
        """
        if not all("/" in name for name in self.files):
            return None
        return tuple(sorted({name.split("/", 1)[0] for name in self.files}))

    @cached_property
    def labels(self) -> np.ndarray | None:
        """(N,) int64, each image's class: its place in `classes`; None where there are none."""
        if self.classes is None:
            return None
        number = {name: place for place, name in enumerate(self.classes)}
        return np.array([number[name.split("/", 1)[0]] for name in self.files], dtype=np.int64)

    def path(self, index: int) -> Path:
        """The file of the `index`-th image."""
        return self.folder / self.files[index]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the names in their order: equal where an index number means the same file name."""
        return hashlib.sha256("\n".join(self.files).encode(errors="surrogateescape")).hexdigest()


def find_images(root: str) -> ImageIndex:
    """List the images of `root/train` where there is such a folder, else of `root`, at any depth.

    So ImageNet's folder, any ImageFolder and a flat folder all serve. Links to folders are followed, hidden files
    (`._x.jpg`) and folders are not looked at.

    Raises:
        UserError: no root given, no such folder, or no image in it.
    """
    if not root:
        raise UserError("DATA.ROOT is not set; end the command with: DATA.ROOT /path/to/images")
    top = Path(root).expanduser()
    if not top.is_dir():
        raise UserError(f"DATA.ROOT {top} {'is not a folder' if top.exists() else 'does not exist'}")
    folder = top / "train" if (top / "train").is_dir() else top
    files = sorted(_walk(folder), key=lambda name: name.split("/"))
    if not files:
        raise UserError(f"DATA.ROOT {folder} holds no images ({', '.join(EXTENSIONS)}), at any depth")
    return ImageIndex(folder, tuple(files))


def _walk(folder: Path) -> Iterator[str]:
    seen: set[str] = set()
    for current, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(current)
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(current).relative_to(folder)
        for name in names:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield (relative / name).as_posix()
