"""Every image draws from its own generator, a function of (seed, part, index): more images change no other."""

from __future__ import annotations

import zlib

from numpy.random import PCG64, Generator, SeedSequence


def generator(seed: int, part: str, index: int) -> Generator:
    """The generator of image `index` of a part such as `VOC2007`."""
    return Generator(PCG64(SeedSequence([seed, zlib.crc32(part.encode()), index])))


def names_of(rng: Generator, index: int, classes: tuple[str, ...], most: int = 3) -> list[str]:
    """One to `most` class names for image `index`; the first goes round the classes, so that every class is met."""
    more = [classes[int(rng.integers(len(classes)))] for _ in range(int(rng.integers(0, most)))]
    return [classes[index % len(classes)], *more]
