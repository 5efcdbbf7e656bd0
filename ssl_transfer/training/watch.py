"""Hang watch: a process in which nothing moves writes the stacks of all its threads and workers and exits with 75.

A stopped process, a loader blocked on a dead file system or a collective that one process never enters would hold its
GPUs until the time limit. Each process watches itself; the launcher requeues the job and excludes the node if it hangs
again. Python's `faulthandler` writes the stacks.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import multiprocessing
import os
import statistics
import threading
import time
from collections import deque
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils import comm

from ssl_transfer.environment import host_name
from ssl_transfer.errors import EXIT_REQUEUE
from ssl_transfer.formats.heartbeat import Heartbeat, attempt_name
from ssl_transfer.formats.job import utc_now
from ssl_transfer.training.collective_times import CollectiveTimes
from ssl_transfer.training.distributed import DUMP_STACKS, kill_workers, request_stacks

START, STEP, EVALUATION, CHECKPOINT = "start", "step", "evaluation", "checkpoint"
BOUNDS = {START: 1800.0, EVALUATION: 3600.0, CHECKPOINT: 1800.0}
"""Seconds without a sign of life outside of steps. Log lines and images of an evaluation are such signs."""

SLOW_STEPS = 10
"""A step may take so many times the median step, however short the bound is."""

LOGGERS = ("ssl_transfer", "detectron2", "fvcore", "pretrain", "transfer")
"""Their lines are signs of life."""

POLL, WRITE_EVERY, SUSPENDED = 1.0, 10.0, 15.0
"""Seconds between two looks, between two writes of the heartbeat, and of a gap that shows that the process itself was
suspended (SIGSTOP, `scontrol suspend`), which is no hang."""


class HangWatch(logging.Handler):
    """Watches this process while used as a context manager.

    Args:
        folder: for `heartbeat.rank<N>.json` and `stacks.rank<N>.txt`; they stay only where the process hung.
        seconds: the longest step; 0: never ends the process.
        is_compiled: whether torch.compile traces the steps: then collectives are not timed.

    Attributes:
        iteration: iterations done.
    """

    def __init__(self, folder: Path, seconds: float, is_compiled: bool = False) -> None:
        super().__init__()
        self.folder, self.seconds, self.rank = folder, seconds, comm.get_rank()
        self.iteration = 0
        self._steps: deque[float] = deque(maxlen=50)
        self._waits: deque[float] = deque(maxlen=50)
        self._collectives: deque[float] = deque(maxlen=50)
        self.times = CollectiveTimes(not is_compiled)
        self._installed = self.times.installed()
        self._begun = 0.0
        self._stacks_file = folder / f"stacks.rank{self.rank}.txt"
        self._heartbeat_file = folder / f"heartbeat.rank{self.rank}.json"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hang-watch", daemon=True)
        self.enter(START)

    def __enter__(self) -> HangWatch:
        self._stacks = open(self._stacks_file, "ab")  # open until __exit__; workers inherit it
        faulthandler.register(DUMP_STACKS, self._stacks, all_threads=True, chain=False)
        for name in LOGGERS:
            logging.getLogger(name).addHandler(self)
        self._installed.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()
        self._installed.__exit__(None, None, None)
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(self)
        faulthandler.unregister(DUMP_STACKS)
        self._stacks.close()
        self._heartbeat_file.unlink(missing_ok=True)
        if not self._stacks_file.stat().st_size:
            self._stacks_file.unlink()

    def emit(self, _record: logging.LogRecord) -> None:
        """A log line is a sign of life."""
        self.beat()

    def beat(self) -> None:
        """A sign of life."""
        self._last = time.monotonic()

    def enter(self, phase: str) -> None:
        """A phase begins, which is a sign of life; `BOUNDS` holds how long it may go without another."""
        self.phase, self.doing = phase, ""
        self.beat()

    def report(self, doing: str) -> None:
        """How far an evaluation is, which is a sign of life; `launch` shows it."""
        self.phase, self.doing = EVALUATION, doing
        self.beat()

    def begin_step(self) -> None:
        """A step begins. The first one compiles and fills the loader: it has the bound of the start."""
        if self.iteration:
            self.enter(STEP)
        waited = self.times.begin_step(self.iteration)
        if waited is not None:
            self._collectives.append(waited)
        self._begun = time.perf_counter()

    def end_step(self, waited: float = 0.0) -> None:
        """A step ended, of which this process waited so many seconds for images."""
        self._steps.append(time.perf_counter() - self._begun)
        self._waits.append(waited)
        self.times.end_step()
        self.iteration += 1
        self.beat()

    def bound(self) -> float:
        """Seconds without a sign of life that the current phase may last."""
        if self.phase != STEP:
            return max(self.seconds, BOUNDS[self.phase])
        return max(self.seconds, SLOW_STEPS * statistics.median(self._steps))

    def _watch(self) -> None:
        looked, written, was_doing = time.monotonic(), -WRITE_EVERY, False
        while not self._ended.wait(POLL):
            now = time.monotonic()
            if now - looked > SUSPENDED:
                self.beat()
            looked = now
            if now - written >= WRITE_EVERY or bool(self.doing) != was_doing:
                written, was_doing = now, bool(self.doing)
                self._write()
            if self.seconds and now - self._last > self.bound():
                self._leave(now - self._last)

    def _leave(self, seconds: float) -> None:
        """Write the stacks and end the process. The main thread may hold any lock: nothing here logs."""
        where = f"rank {self.rank} on {host_name()}"
        hung = f"no progress for {seconds:.0f} s in {self.phase} after {self.iteration} iterations, {where}"
        faulthandler.dump_traceback(self._stacks, all_threads=True)
        for child in multiprocessing.active_children():
            if child.pid is not None:
                request_stacks(child.pid)
        time.sleep(1)
        self._write(hung)
        os.write(2, f"error: hung: {hung}; stacks in {self._stacks_file}\n".encode())
        kill_workers()
        os._exit(EXIT_REQUEUE)

    def _write(self, hung: str | None = None) -> None:
        """Write the heartbeat; not flushed to disk, and a disk that refuses it ends nothing."""
        content = Heartbeat(
            rank=self.rank,
            host=host_name(),
            pid=os.getpid(),
            attempt=attempt_name(),
            at=utc_now(),
            phase=self.phase,
            iteration=self.iteration,
            step_seconds=_median(self._steps),
            data_seconds=_median(self._waits),
            collective_seconds=_median(self._collectives),
            doing=self.doing or None,
            hung=hung,
        )
        part = self._heartbeat_file.with_suffix(".tmp")
        with contextlib.suppress(OSError):
            part.write_text(json.dumps(content.as_dict(), indent=1) + "\n")
            part.replace(self._heartbeat_file)


def _median(values: deque[float]) -> float | None:
    return round(statistics.median(values), 6) if values else None


class WatchSteps(HookBase):
    """Reports steps to the watch. Register it before the hooks whose time is no step's."""

    def __init__(self, watch: HangWatch) -> None:
        self.watch = watch

    def before_train(self) -> None:
        self.watch.times.watch_gradients(self.trainer.model)

    def before_step(self) -> None:
        self.watch.begin_step()

    def after_step(self) -> None:
        self.watch.end_step(float(self.trainer.storage.latest().get("data_time", (0.0, 0))[0]))


class EnterPhase(HookBase):
    """The hooks registered after it belong to this phase, until the next step."""

    def __init__(self, watch: HangWatch, phase: str) -> None:
        self.watch, self.phase = watch, phase

    def after_step(self) -> None:
        self.watch.enter(self.phase)
