"""Logs and metrics of a run: log lines to stderr and log.txt, metrics.json and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter

from ssl_transfer.console import CLEAR, is_live, is_quiet
from ssl_transfer.errors import Preempted, UserError, storage_error
from ssl_transfer.files import atomic_write
from ssl_transfer.training.divergence import Diverged

LOG, METRICS = "log.txt", "metrics.json"


class _ExpectedEndings(logging.Filter):
    """Drops the traceback that TrainerBase logs for expected exceptions: their one line is printed elsewhere."""

    def filter(self, record: logging.LogRecord) -> bool:
        kind = record.exc_info[0] if record.exc_info else None
        return not (kind and issubclass(kind, (UserError, Preempted, Diverged)))


class _LogFile(logging.FileHandler):
    """A log file whose full or failing disk ends the run in one line, not in a traceback for each log line."""

    def handleError(self, record: logging.LogRecord) -> None:
        failure = storage_error(sys.exc_info()[1], self.baseFilename)
        if failure is None:
            super().handleError(record)
        else:
            raise failure


FILE_ONLY = ("detectron2", "fvcore", "py.warnings")
"""Loggers whose lines are for the log file: they concern nobody who watches a run."""
PROGRESS: dict[str, Any] = {"extra": {"is_progress": True}}
"""For log lines that a terminal's status line shows already: `logger.info(text, **PROGRESS)`."""


class _Console(logging.StreamHandler):
    """Prints above the status line of a terminal."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.is_live = is_live(stream)

    def filter(self, record: logging.LogRecord) -> Any:
        hidden = record.name.split(".")[0] in FILE_ONLY or record.name in FILE_ONLY
        return not hidden and not (self.is_live and hasattr(record, "is_progress")) and super().filter(record)

    def format(self, record: logging.LogRecord) -> str:
        return (CLEAR if self.is_live else "") + super().format(record)


@contextlib.contextmanager
def log_to_folder(
    folder: Path, levels: Mapping[str, int], *, rank: int = 0, rank_files: bool = False, formatter: logging.Formatter
) -> Iterator[None]:
    """Log to stderr and, appending, to `folder/log.txt` while the block runs; afterwards restore the loggers.

    Args:
        folder: the run's folder.
        levels: the loggers that are redirected, and their levels.
        rank: of this process. Rank 0 logs to stderr and log.txt.
        rank_files: whether other ranks log to `log.txt.rank<N>`; otherwise their warnings go to stderr.
        formatter: of the lines.
    """
    main = rank == 0
    handlers: list[logging.Handler] = []
    if main or rank_files:
        handlers.append(_LogFile(folder / (LOG if main else f"{LOG}.rank{rank}"), encoding="utf-8"))
    if main or not rank_files:
        handlers.append(_Console(sys.stderr))
    for handler in handlers:
        handler.setFormatter(formatter)
        silent = isinstance(handler, _Console) and is_quiet()
        handler.setLevel(logging.INFO if (main or rank_files) and not silent else logging.WARNING)
        handler.addFilter(_ExpectedEndings())
    loggers = {logging.getLogger(name): level for name, level in {**levels, "py.warnings": logging.WARNING}.items()}
    logging.captureWarnings(True)
    before = [(logger, logger.level, logger.propagate) for logger in loggers]
    for logger, level in loggers.items():
        logger.setLevel(level)
        logger.propagate = False
        for handler in handlers:
            logger.addHandler(handler)
    report = threading.excepthook
    # TensorBoard writes in a thread. Where the disk fails it, the run ends in one line at its own next write.
    threading.excepthook = lambda failed: None if storage_error(failed.exc_value) else report(failed)
    try:
        yield
    finally:
        threading.excepthook = report
        logging.captureWarnings(False)
        for logger, level, propagate in before:
            for handler in handlers:
                logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
        for handler in handlers:
            handler.close()


def build_writers(folder: Path, start: int, console: EventWriter, tensorboard: bool) -> list[EventWriter]:
    """The main process's writers of a run that starts or resumes at iteration `start`.

    What metrics.json and TensorBoard hold of iterations from `start` on is dropped, because they are computed again.
    """
    truncate_metrics(folder / METRICS, start)
    writers = [console, JSONWriter(str(folder / METRICS))]
    if tensorboard:
        writers.append(TensorboardXWriter(str(folder / "tensorboard"), purge_step=start))
    return writers


def truncate_metrics(path: Path, start: int) -> None:
    """Drop a metrics file's lines of iterations from `start` on, and incomplete lines."""
    if not path.exists():
        return
    with open(path, "rb") as stream:
        if all(_iteration(line) < start for line in stream):
            return
    with open(path, "rb") as stream, atomic_write(path) as kept:
        kept.writelines(line for line in stream if _iteration(line) < start)


def _iteration(line: bytes) -> float:
    """A line's iteration; infinite if the line is not a JSON object that has one."""
    try:
        return float(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):
        return math.inf
