"""Write the toy set: drawn in a temporary folder next to the target, then renamed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ssl_transfer.errors import UserError
from ssl_transfer.files import read_json, write_json
from transfer.toy import coco_files, photos, voc_files
from transfer.toy.drawing import ANY_HUE, SHAPES

FORMAT = "toy/1"
RECORD = "toy.json"


@dataclass(frozen=True)
class Size:
    """Numbers of images.

    Attributes:
        photos: photos for pre-training.
        voc2007: (trainval, test); trainval is halved into train and val.
        voc2012: (train, val).
        coco: (train, val).
    """

    photos: int = 192
    voc2007: tuple[int, int] = (60, 40)
    voc2012: tuple[int, int] = (30, 20)
    coco: tuple[int, int] = (60, 30)

    def check(self) -> None:
        """Raise UserError where a part is too small for every class and special image."""
        voc2007 = (2 * voc_files.SMALLEST_SPLIT, voc_files.SMALLEST_SPLIT)  # trainval is two splits
        voc2012, smallest_coco = (voc_files.SMALLEST_SPLIT,) * 2, (coco_files.SMALLEST_SPLIT,) * 2
        _at_least("photos", (self.photos,), (len(photos.PHOTO_CLASSES),))
        _at_least("voc2007", self.voc2007, voc2007)
        _at_least("voc2012", self.voc2012, voc2012)
        _at_least("coco", self.coco, smallest_coco)

    @property
    def photos_val(self) -> int:
        """Number of additional validation photos: an eighth of the others, at least one per class."""
        return max(self.photos // 8, len(photos.PHOTO_CLASSES))


def _at_least(name: str, given: tuple[int, ...], least: tuple[int, ...]) -> None:
    if any(count < smallest for count, smallest in zip(given, least, strict=True)):
        words = (" ".join(map(str, counts)) for counts in (given, least))
        raise UserError("--{}: {} is too few; give at least {}".format(name, *words))


def build_toy_sets(out: Path, seed: int = 0, size: Size | None = None, any_hue: bool = False) -> bool:
    """Draw the toy set into `out`.

    Args:
        out: the folder to create; it must be missing, empty, or hold the same set.
        seed: the same seed and size give the same bytes on the same platform.
        size: numbers of images.
        any_hue: objects of a class have any colour; else each class has its own.

    Returns:
        True where it was drawn, False where it existed already.

    Raises:
        UserError: `out` holds something else or cannot be written, or size or seed is out of range; nothing is changed.
    """
    size = size or Size()
    size.check()
    if seed < 0:
        raise UserError(f"--seed: {seed} is negative; give 0 or more")
    return write_once(out, describe(seed, size, any_hue), lambda folder: _draw(folder, seed, size, any_hue))


def write_once(out: Path, record: dict[str, Any], draw: Callable[[Path], None]) -> bool:
    """Draw a set into a temporary folder that becomes `out`; nothing is done where `out` holds the same set already.

    Args:
        out: the folder to create; it must be missing, empty, or hold the same set.
        record: everything that decides the set's bytes: the content of its `toy.json`.
        draw: fills the folder that it is given.

    Returns:
        True where it was drawn, False where it existed already.

    Raises:
        UserError: `out` holds something else or cannot be written; nothing is changed.
    """
    out = out.resolve()
    if holds_same_set(out, record):
        return False
    try:
        with _temporary_folder(out) as folder:
            if holds_same_set(out, record):  # another process finished it while this one waited
                return False
            draw(folder)
            write_json(folder / RECORD, record)
            folder.rename(out)
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error.strerror}; choose a folder with free space that you may write to"
        ) from error
    return True


def describe(seed: int, size: Size, any_hue: bool = False) -> dict[str, Any]:
    """The content of `toy.json`."""
    counts = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(size).items()}
    return {
        "format": FORMAT,
        "seed": seed,
        **counts,
        "classes": [shape.name for shape in SHAPES],
        "looks": list(photos.PHOTO_CLASSES),
        **({"hues": "any"} if any_hue else {}),  # absent from sets of earlier releases
    }


def holds_same_set(out: Path, record: dict[str, Any]) -> bool:
    """Whether `out` holds this toy set already.

    Raises:
        UserError: it holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / RECORD).is_file():
        raise UserError(f"{out} exists and is no toy set; give another folder (nothing was changed)")
    found = read_json(out / RECORD)
    if found != record:
        other = ", ".join(key for key in record if not isinstance(found, dict) or found.get(key) != record[key])
        raise UserError(f"{out} holds a toy set of another {other}; give another folder (nothing was changed)")
    return True


@contextlib.contextmanager
def _temporary_folder(out: Path) -> Iterator[Path]:
    """Lock an empty folder next to `out`; remove what a killed run left in it.

    A lock is released when its process ends, so an unlocked folder belongs to a killed run.
    """
    folder = out.parent / f".{out.name}.toy-unfinished"
    lock = _lock_folder(folder)
    try:
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield folder
    finally:
        if _same_folder(lock, folder):
            shutil.rmtree(folder)
        os.close(lock)


def _lock_folder(folder: Path) -> int:
    """Create the folder unless it exists and lock it; return the file descriptor that holds the lock."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # another process has just renamed it
            continue
        with contextlib.suppress(OSError):  # without locks, concurrent processes are not detected
            fcntl.flock(lock, fcntl.LOCK_EX)
        if _same_folder(lock, folder):
            return lock
        os.close(lock)


def _same_folder(handle: int, folder: Path) -> bool:
    """Whether the open folder still has this name; false after a rename."""
    try:
        return os.path.samestat(os.fstat(handle), folder.stat())
    except FileNotFoundError:
        return False


def _draw(folder: Path, seed: int, size: Size, any_hue: bool) -> None:
    shapes = ANY_HUE if any_hue else SHAPES
    photos.write(folder / "photos", seed, "train", size.photos, shapes)
    photos.write(folder / "photos", seed, "val", size.photos_val, shapes)
    detection = folder / "detection"
    trainval, test = size.voc2007
    halves = {"train": trainval // 2, "val": trainval - trainval // 2, "test": test}
    voc_files.write(detection, 2007, halves, partial(voc_files.shapes, seed, 2007, shapes))
    sizes = dict(zip(("train", "val"), size.voc2012, strict=True))
    voc_files.write(detection, 2012, sizes, partial(voc_files.shapes, seed, 2012, shapes))
    sizes = dict(zip(("train", "val"), size.coco, strict=True))
    coco_files.write(detection, sizes, partial(coco_files.shapes, seed, shapes))
