"""The whole toy world in one folder: built beside its place, then renamed into it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json, write_json
from transfer.toy import coco, photos, voc
from transfer.toy.shapes import SHAPES

FORMAT = "toy/1"
RECORD = "toy.json"


@dataclass(frozen=True)
class Size:
    """How much is drawn, in images.

    Attributes:
        photos: for pre-training.
        voc2007: (trainval, test); trainval is halved into train and val.
        voc2012: (train, val).
        coco: (train, val).
    """

    photos: int = 192
    voc2007: tuple[int, int] = (60, 40)
    voc2012: tuple[int, int] = (30, 20)
    coco: tuple[int, int] = (60, 30)

    def check(self) -> None:
        """Raise UserError where a part is too small to hold what it must hold."""
        voc2007 = (2 * voc.SMALLEST_SPLIT, voc.SMALLEST_SPLIT)  # trainval is two splits
        voc2012, smallest_coco = (voc.SMALLEST_SPLIT,) * 2, (coco.SMALLEST_SPLIT,) * 2
        _at_least("photos", (self.photos,), (len(photos.LOOKS),))
        _at_least("voc2007", self.voc2007, voc2007)
        _at_least("voc2012", self.voc2012, voc2012)
        _at_least("coco", self.coco, smallest_coco)

    @property
    def photos_val(self) -> int:
        """How many photos are kept from training: an eighth as many more, and one a look at least."""
        return max(self.photos // 8, len(photos.LOOKS))


def _at_least(name: str, given: tuple[int, ...], least: tuple[int, ...]) -> None:
    if any(count < smallest for count, smallest in zip(given, least, strict=True)):
        words = (" ".join(map(str, counts)) for counts in (given, least))
        raise UserError("--{}: {} is too few; give at least {}".format(name, *words))


def build(out: Path, seed: int = 0, size: Size | None = None) -> bool:
    """Draw the toy world into `out`.

    Args:
        out: the folder to make; it must not exist, be empty, or hold the same world.
        seed: the world's seed; the same seed and size give the same bytes on the same platform.
        size: how many images.

    Returns:
        True when it was drawn, False when it was there already.

    Raises:
        UserError: `out` holds something else or cannot be written, or size or seed is out of range; nothing is touched.
    """
    size = size or Size()
    size.check()
    if seed < 0:
        raise UserError(f"--seed: {seed} is negative; give 0 or more")
    record = describe(seed, size)
    out = out.resolve()
    if stands(out, record):
        return False
    try:
        with _workshop(out) as folder:
            if stands(out, record):  # another process finished it while this one waited
                return False
            _draw(folder, seed, size)
            write_json(folder / RECORD, record)
            folder.rename(out)
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error.strerror}; choose a folder with room that you may write to"
        ) from error
    return True


def describe(seed: int, size: Size) -> dict[str, Any]:
    """What `toy.json` records."""
    counts = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(size).items()}
    return {
        "format": FORMAT,
        "seed": seed,
        **counts,
        "classes": [shape.name for shape in SHAPES],
        "looks": list(photos.LOOKS),
    }


def stands(out: Path, record: dict[str, Any]) -> bool:
    """Whether `out` holds this very world already.

    Raises:
        UserError: it holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / RECORD).is_file():
        raise UserError(f"{out} exists and is no toy set; give another folder (nothing was touched)")
    found = read_json(out / RECORD)
    if found != record:
        other = ", ".join(key for key in record if not isinstance(found, dict) or found.get(key) != record[key])
        raise UserError(f"{out} holds a toy set of another {other}; give another folder (nothing was touched)")
    return True


@contextlib.contextmanager
def _workshop(out: Path) -> Iterator[Path]:
    """An empty folder beside `out`, held by a lock; what a killed run left in it is cleared.

    A lock dies with its process, so a workshop nobody holds is a dead run's.
    """
    folder = out.parent / f".{out.name}.toy-unfinished"
    lock = _held(folder)
    try:
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield folder
    finally:
        if _same_folder(lock, folder):
            shutil.rmtree(folder)
        os.close(lock)


def _held(folder: Path) -> int:
    """Make the folder where it is missing and lock it; the open handle that holds the lock."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # its owner has just finished and renamed it
            continue
        with contextlib.suppress(OSError):  # a file system without locks: two builders at once are not told apart
            fcntl.flock(lock, fcntl.LOCK_EX)
        if _same_folder(lock, folder):
            return lock
        os.close(lock)


def _same_folder(handle: int, folder: Path) -> bool:
    """Whether the open folder still bears this name (a rename takes it away)."""
    try:
        return os.path.samestat(os.fstat(handle), folder.stat())
    except FileNotFoundError:
        return False


def _draw(folder: Path, seed: int, size: Size) -> None:
    photos.write(folder / "photos", seed, "train", size.photos)
    photos.write(folder / "photos", seed, "val", size.photos_val)
    detection = folder / "detection"
    trainval, test = size.voc2007
    voc.write(detection, seed, 2007, {"train": trainval // 2, "val": trainval - trainval // 2, "test": test})
    voc.write(detection, seed, 2012, {"train": size.voc2012[0], "val": size.voc2012[1]})
    coco.write(detection, seed, {"train": size.coco[0], "val": size.coco[1]})
