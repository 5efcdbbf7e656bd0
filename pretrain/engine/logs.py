"""Where log lines go: the main process's to stderr and log.txt, the others' nowhere but for warnings."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from common.errors import Preempted, UserError
from pretrain.engine.trainer import Diverged

PACKAGES = ("pretrain", "detectron2")


class _KnownEnds(logging.Filter):
    """Drops the traceback that TrainerBase logs for endings that are no bug: their one line is printed elsewhere."""

    def filter(self, record: logging.LogRecord) -> bool:
        kind = record.exc_info[0] if record.exc_info else None
        return not (kind and issubclass(kind, (UserError, Preempted, Diverged)))


@contextlib.contextmanager
def logging_to(file: Path, main: bool) -> Iterator[None]:
    """Log to stderr and, appending, to `file` while the block runs; afterwards all is as before.

    Args:
        file: the run's log.txt.
        main: whether this is the main process; others log warnings to stderr only.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if main:
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        handler.setLevel(logging.INFO if main else logging.WARNING)
        handler.addFilter(_KnownEnds())
    loggers = [logging.getLogger(name) for name in PACKAGES]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger, level in zip(loggers, (logging.INFO, logging.WARNING), strict=True):
        logger.setLevel(level)
        logger.propagate = False
        for handler in handlers:
            logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            for handler in handlers:
                logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
        for handler in handlers:
            handler.close()
