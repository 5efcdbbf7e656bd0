"""Looking at the images themselves: each can be opened and has the size its annotation says."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import chain

from PIL import Image

from common.errors import UserError
from transfer.tasks.records import Record
from transfer.tasks.task import Task

ORIENTATION = 274
"""The EXIF tag that says how a camera was held; Detectron2 turns the image accordingly before it looks at its size."""
TURNED = (5, 6, 7, 8)
"""Its values that exchange width and height."""

Item = tuple[str, int, int]


def require_images(task: Task) -> None:
    """See that every image of a task opens and has its annotation's size; only headers are read.

    Raises:
        UserError: names the first image that does not.
    """
    records = chain.from_iterable(dataset.records for dataset in (*task.train, task.test))
    for fault in image_faults(records):
        raise UserError(fault)


def image_faults(records: Iterable[Record], decode: bool = False, workers: int | None = None) -> Iterator[str]:
    """What is wrong with the images, a line each, in the records' order.

    Args:
        records: annotated images; each file is looked at once.
        decode: read every pixel, which finds files that were cut short; slow.
        workers: threads (headers) or processes (decode); None: 16 threads, or as many processes as there are cores.
    """
    items = list({record.file: (record.file, record.width, record.height) for record in records}.values())
    if not decode:
        with ThreadPoolExecutor(workers or 16) as pool:
            yield from _told(pool.map(_header_fault, items))
        return
    count = workers or os.cpu_count() or 1
    if count == 1:
        yield from _told(map(_decode_fault, items))
        return
    with ProcessPoolExecutor(count) as processes:
        yield from _told(processes.map(_decode_fault, items, chunksize=32))


def _told(found: Iterable[str]) -> Iterator[str]:
    return (fault for fault in found if fault)


def _header_fault(item: Item) -> str:
    return _fault(item, decode=False)


def _decode_fault(item: Item) -> str:
    return _fault(item, decode=True)


def _fault(item: Item, decode: bool) -> str:
    """What is wrong with one image; empty where nothing is."""
    file, width, height = item
    try:
        with Image.open(file) as image:
            found = _size(image)
            if decode:
                image.convert("RGB")
    except FileNotFoundError:
        return f"{file} does not exist, but it is listed; is the set complete?"
    except Exception as error:  # Pillow's decoders raise what they like
        return f"{file} cannot be read as an image ({' '.join(str(error).split())}); fetch it again"
    if found != (width, height):
        size = f"{found[0]} × {found[1]}"
        return f"{file} is {size}, its annotation says {width} × {height}; mend the one that is wrong"
    return ""


def _size(image: Image.Image) -> tuple[int, int]:
    """Width and height after the turn that EXIF asks for."""
    width, height = image.size
    return (height, width) if image.getexif().get(ORIENTATION) in TURNED else (width, height)


def first(faults: Sequence[str], count: int) -> list[str]:
    """The first `count` faults, and how many more there are."""
    more = len(faults) - count
    return [*faults[:count], f"and {more} more"] if more > 0 else list(faults)
