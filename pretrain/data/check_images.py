"""Find the images that pre-training could not read, before a run meets them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

from pretrain.data.decode import decode_rgb, read_header
from pretrain.data.index import ImageIndex
from ssl_transfer.errors import UserError

CHUNK = 64
"""Images of one task of a worker."""


def unreadable_images(
    index: ImageIndex, decode: bool = False, workers: int | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of images read, one line for each that cannot be read), chunk by chunk, in the index's order.

    Args:
        index: the images.
        decode: decode every pixel as training does, which finds damage within a file; else only its header and its end.
        workers: threads (headers) or processes (decode); None: 16 threads, or as many processes as there are cores.
    """
    count = workers or (os.cpu_count() or 1 if decode else 16)
    pool: Executor = ProcessPoolExecutor(count) if decode and count > 1 else ThreadPoolExecutor(count)
    pending: deque[tuple[int, Future[list[str]]]] = deque()
    with pool:
        for start in range(0, len(index), CHUNK):
            paths = [index.path(number) for number in range(start, min(start + CHUNK, len(index)))]
            pending.append((len(paths), pool.submit(_faults, paths, decode)))
            # Not `pool.map`, which would create a task for each chunk of a million images at once.
            if len(pending) > 2 * count:
                number, task = pending.popleft()
                yield number, task.result()
        for number, task in pending:
            yield number, task.result()


def _faults(paths: list[Path], decode: bool) -> list[str]:
    faults = []
    for path in paths:
        try:
            if decode:
                decode_rgb(path)
            else:
                read_header(path)
        except UserError as error:
            faults.append(str(error))
    return faults
