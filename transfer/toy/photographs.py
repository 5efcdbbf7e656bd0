"""The photographs that scenes are made of: an ImageFolder such as CIFAR-10's, divided so that no two parts share one.

Two photographs are the same if one is the other, or its mirror image, pixel by pixel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from ssl_transfer.errors import UserError, abbreviate
from transfer.toy.drawing import generator

SPLITS = ("train", "test")
SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp"))
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Photographs:
    """An ImageFolder's photographs, each content once.

    Attributes:
        root: the folder of `train/` and `test/`.
        classes: names of the classes.
        files: split → class → files below `root`, in the order of their names.
        dropped: number of photographs left out of `test`, and of `train`, because an earlier one is the same.
        digest: SHA-256 of all contents and classes.
    """

    root: Path
    classes: tuple[str, ...]
    files: Mapping[str, Mapping[str, Sequence[str]]]
    dropped: tuple[int, int]
    digest: str


@dataclass
class Deck:
    """The photographs of one part; each is dealt once before one is dealt again.

    Attributes:
        root: see `Photographs`.
        pool: (class, file) of each photograph.
        rng: shuffles them.
        used: files that were dealt.
    """

    root: Path
    pool: Sequence[tuple[str, str]]
    rng: Generator
    used: set[str] = field(default_factory=set)
    _left: list[int] = field(default_factory=list)

    def deal(self) -> tuple[str, Pixels]:
        """The next photograph: its class and its pixels (height, width, 3)."""
        if not self._left:
            self._left = self.rng.permutation(len(self.pool)).tolist()
        name, file = self.pool[self._left.pop()]
        self.used.add(file)
        return name, read_pixels(self.root / file)

    def pick(self) -> Pixels:
        """Any photograph, for what is not annotated."""
        _, file = self.pool[int(self.rng.integers(len(self.pool)))]
        self.used.add(file)
        return read_pixels(self.root / file)


def read_photographs(root: Path) -> Photographs:
    """List and compare the photographs of an ImageFolder with `train/` and `test/`.

    Raises:
        UserError: a folder is missing, the classes of the two differ, or an image cannot be read.
    """
    classes = _classes(root)
    hashes, seen, dropped = hashlib.sha256(), set[bytes](), dict.fromkeys(SPLITS, 0)
    files: dict[str, dict[str, list[str]]] = {split: {name: [] for name in classes} for split in SPLITS}
    for split in SPLITS:
        for name in classes:
            for path in sorted((root / split / name).iterdir()):
                if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
                    continue
                key = content_key(read_pixels(path))
                if key in seen:
                    dropped[split] += 1
                    continue
                seen.add(key)
                files[split][name].append(f"{split}/{name}/{path.name}")
                hashes.update(f"{split}/{name}".encode() + key)
    return Photographs(root, classes, files, (dropped["test"], dropped["train"]), hashes.hexdigest())


def _classes(root: Path) -> tuple[str, ...]:
    found = []
    for split in SPLITS:
        folder = root / split
        if not folder.is_dir():
            remedy = "python tools/data.py download cifar10 DIR makes one"
            raise UserError(f"{folder} is not a folder; give an ImageFolder; {remedy}")
        found.append(sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."))
    if found[0] != found[1] or len(found[0]) < 2:
        differ = sorted({*found[0]} ^ {*found[1]}) or found[0]
        rule = "train/ and test/ must have the same folders of classes, two or more"
        raise UserError(f"{root}: {rule}; not in both, or too few: {abbreviate(differ) or 'none'}")
    return tuple(found[0])


def read_pixels(path: Path) -> Pixels:
    """Pixels (height, width, 3) in RGB.

    Raises:
        UserError: the file is no image.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not an image ({' '.join(str(error).split()):.80}); remove or repair it") from error


def content_key(pixels: Pixels) -> bytes:
    """The same for a photograph and its mirror image, and for no other."""
    views = (np.ascontiguousarray(view).tobytes() for view in (pixels, pixels[:, ::-1]))
    return hashlib.sha256(repr(pixels.shape).encode() + min(views)).digest()


def divide(photographs: Photographs, seed: int, parts: Mapping[str, int]) -> dict[str, list[tuple[str, str]]]:
    """Divide the train photographs: to each part, so many of every class; no photograph to two parts.

    Args:
        photographs: which.
        seed: of the choice.
        parts: name → photographs of a class.

    Raises:
        UserError: a class has too few.
    """
    divided: dict[str, list[tuple[str, str]]] = {part: [] for part in parts}
    needed = sum(parts.values())
    for number, name in enumerate(photographs.classes):
        files = photographs.files["train"][name]
        if len(files) < needed:
            raise UserError(
                f"{photographs.root}/train/{name} has {len(files)} different photographs, {needed} are needed; "
                "give fewer --labels"
            )
        order = generator(seed, "labels", number).permutation(len(files)).tolist()
        for part, count in parts.items():
            chosen, order = order[:count], order[count:]
            divided[part] += [(name, files[index]) for index in chosen]
    return divided
