"""Logs and metrics of a run: log lines to stderr and log.txt, metrics.json and TensorBoard."""

from __future__ import annotations

import abc
import contextlib
import json
import logging
import math
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter, JSONWriter, TensorboardXWriter, get_event_storage

from ssl_transfer.console import CLEAR, Progress, StatusLine, clock, is_live, is_quiet
from ssl_transfer.errors import Preempted, UserError, storage_error
from ssl_transfer.files import atomic_write
from ssl_transfer.training.divergence import Diverged

_log = logging.getLogger(__name__)
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


FILE_ONLY = ("detectron2", "fvcore", "py.warnings", "torch")
"""Loggers whose lines are for the log file: they concern nobody who watches a run."""
WARNINGS = {"py.warnings": logging.WARNING, "torch": logging.WARNING}
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
    loggers = {logging.getLogger(name): level for name, level in {**levels, **WARNINGS}.items()}
    logging.captureWarnings(True)
    torch_logger = logging.getLogger("torch")
    torch_handlers, torch_logger.handlers = torch_logger.handlers, []  # it prints to stderr itself
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
        torch_logger.handlers = torch_handlers
        for handler in handlers:
            handler.close()


def count_progress(
    total: int, label: str, unit: str, report: Callable[[str], None] = lambda _doing: None
) -> Callable[..., None]:
    """A function that counts steps (and takes a note); the main process prints their progress.

    Args:
        total: number of this process's steps.
        label, unit: describe the work and what is counted.
        report: called at each step with how far the work is.
    """
    progress = Progress(total, label, unit)
    prints = comm.is_main_process() and total

    def step(count: int = 1, note: str = "") -> None:
        if prints and count:
            progress.step(count, note)
        else:
            progress.done += count
        report(str(progress))

    return step


class ProgressLine(EventWriter, abc.ABC):
    """The log line of a training; on a terminal a bar in its place, drawn after every step.

    Args:
        total: iterations.
        key: the loss in the storage.
    """

    def __init__(self, total: int, key: str) -> None:
        self.total, self.key = total, key
        self.written, self.begun = -1, False
        self.bar = StatusLine(sys.stderr) if is_live(sys.stderr) and not is_quiet() else None

    @abc.abstractmethod
    def describe(self, storage: EventStorage, now: Mapping[str, float], done: int) -> str:
        """The line after iteration `done`, from the newest values."""

    def write(self) -> None:
        """Log the newest iteration, once."""
        storage = get_event_storage()
        if self._last(storage) > self.written:
            self.written = self._last(storage)
            _log.info(self._text(storage), **PROGRESS)

    def draw(self) -> None:
        """After each step: the first line, and the bar."""
        storage = get_event_storage()
        now = {name: value for name, (value, _) in storage.latest().items()}
        done, timed = storage.iter + 1, storage.histories().get("time")
        if self.written < 0 and self.key in now:
            self.write()
        elif not self.begun:  # the loss is read some steps later
            _log.info(f"iteration {done}/{self.total} is done", **PROGRESS)
        self.begun = True
        if self.bar:
            values = [f"{name} {now[key]:.4g}" for name, key in (("loss", self.key), ("lr", "lr")) if key in now]
            speed = [f"{timed.median(20):.2f} s/iteration"] if timed else []
            text = f"{done}/{self.total}{describe_eta(storage, self.total - done)}"
            self.bar.show(done, self.total, " · ".join([text, *values, *speed]))

    def close(self) -> None:
        """Leave the bar's line."""
        if self.bar and self.written >= 0:
            self.bar.stream.write("\n")

    def _last(self, storage: EventStorage) -> int:
        return int(storage.latest()[self.key][1]) if self.key in storage.latest() else -1

    def _text(self, storage: EventStorage) -> str:
        now = {name: value for name, (value, _) in storage.latest().items()}
        return self.describe(storage, now, self._last(storage) + 1)


def describe_eta(storage: EventStorage, left: int) -> str:
    """The remaining time, once steps have been timed."""
    return f" · ETA {clock(storage.history('time').median(1000) * left)}" if "time" in storage.histories() else ""


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
