"""Where a trial's log goes: the terminal (rank 0), and `log.txt` in its folder."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from common.files import write_text

NAMES = ("detectron2", "fvcore", "transfer")
METRICS = "metrics.json"


@contextlib.contextmanager
def logging_to(folder: Path, rank: int = 0) -> Iterator[None]:
    """Send the log of Detectron2, fvcore and this project to stderr and `folder/log.txt` while the block runs.

    Rank 0 writes both; any other rank writes `log.txt.rank<N>` alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [
        logging.FileHandler(folder / ("log.txt" if rank == 0 else f"log.txt.rank{rank}"))
    ]
    if rank == 0:
        handlers.append(logging.StreamHandler(sys.stderr))
    formatter = logging.Formatter("%(asctime)s %(name)s: %(message)s", datefmt="%m-%d %H:%M:%S")
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.propagate = False
        for handler in handlers:
            handler.setFormatter(formatter)
            logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.propagate = propagate
            for handler in handlers:
                logger.removeHandler(handler)
        for handler in handlers:
            handler.close()


def trim_metrics(folder: Path, start: int) -> None:
    """Drop what an interrupted run logged beyond the checkpoint that training goes on from.

    A line that was cut short by the interruption goes too.

    Args:
        folder: the trial's folder.
        start: the first iteration that will be done again.
    """
    file = folder / METRICS
    if not file.exists():
        return
    kept = [line for line in file.read_text(errors="replace").splitlines() if _iteration(line) < start]
    write_text(file, "".join(line + "\n" for line in kept))


def _iteration(line: str) -> float:
    try:
        return float(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
