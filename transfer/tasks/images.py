"""Check that each image can be opened and has the size of its annotation."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from transfer.tasks.datasets import DatasetDict
from transfer.tasks.reading import oriented_size

TAIL = 4096
"""Bytes at a file's end in which the mark of its end is looked for."""
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
Item = tuple[str, int, int]


def image_faults(records: Iterable[DatasetDict], decode: bool = False, workers: int | None = None) -> Iterator[str]:
    """Yield one line for every image that is missing, broken or of another size, in the order of the records.

    Args:
        records: annotated images; each file is checked once.
        decode: decode every pixel, which finds truncated files; slow.
        workers: threads (headers) or processes (decode); None: 16 threads, or as many processes as there are cores.
    """
    items = list({record.file: (record.file, record.width, record.height) for record in records}.values())
    if not decode:
        with ThreadPoolExecutor(workers or 16) as pool:
            yield from _only_faults(pool.map(_header_fault, items))
        return
    count = workers or os.cpu_count() or 1
    if count == 1:
        yield from _only_faults(map(decode_fault, items))
        return
    with ProcessPoolExecutor(count) as processes:
        yield from _only_faults(processes.map(decode_fault, items, chunksize=32))


def _only_faults(found: Iterable[str]) -> Iterator[str]:
    return (fault for fault in found if fault)


def _header_fault(item: Item) -> str:
    return _fault(item, decode=False)


def decode_fault(item: Item) -> str:
    """Decode (file, width, height) and return what is wrong, in one line; an empty string where nothing is."""
    return _fault(item, decode=True)


def _fault(item: Item, decode: bool) -> str:
    """Check one image; an empty string where it is as annotated."""
    file, width, height = item
    try:
        with Image.open(file) as image:
            found = oriented_size(image)
            if decode or not _is_complete(file, image.format):
                image.convert("RGB")
    except FileNotFoundError:
        return f"{file} does not exist, but it is listed; is the set complete?"
    except Exception as error:  # Pillow's decoders raise exceptions of many types
        return f"{file} cannot be read as an image ({' '.join(str(error).split())}); fetch it again"
    if found != (width, height):
        size = f"{found[0]} × {found[1]}"
        return f"{file} is {size}, its annotation says {width} × {height}; correct the one that is wrong"
    return ""


def _is_complete(file: str, kind: str | None) -> bool:
    """Whether a file has its end: one without is decoded, as it may be cut off. Other bytes may follow the end."""
    if kind not in ENDS:
        return True
    with Path(file).open("rb") as stream:
        stream.seek(max(stream.seek(0, os.SEEK_END) - TAIL, 0))
        return ENDS[kind] in stream.read()


def abbreviate_faults(faults: Sequence[str], count: int) -> list[str]:
    """The first `count` faults, and the number of the others."""
    more = len(faults) - count
    return [*faults[:count], f"and {more} more"] if more > 0 else list(faults)
