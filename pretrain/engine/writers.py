"""What a run says while it trains: a line on the console and in log.txt, metrics.json, TensorBoard."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

from detectron2.utils.events import EventStorage, EventWriter, JSONWriter, TensorboardXWriter, get_event_storage

from common.console import clock
from common.files import write_text

METRICS = "metrics.json"
_log = logging.getLogger(__name__)


class Console(EventWriter):
    """A plain line: where the run is, loss, std (also as a share of its healthy 1/√d), learning rate, speed, ETA.

    Args:
        epochs, iterations: the run's length.
        batch_size: images a step over all processes.
        dim: d.
    """

    def __init__(self, epochs: int, iterations: int, batch_size: int, dim: int) -> None:
        self.epochs, self.iterations, self.batch_size, self.dim = epochs, iterations, batch_size, dim
        self._written = -1

    def write(self) -> None:
        """Log one line, once an iteration."""
        storage = get_event_storage()
        if "loss" not in storage.latest() or storage.latest()["loss"][1] <= self._written:
            return
        now = {name: value for name, (value, _) in storage.latest().items()}
        self._written = storage.latest()["loss"][1]
        done = self._written + 1
        share = now["std"] * math.sqrt(self.dim)
        _log.info(
            f"epoch {now['epoch']:.2f}/{self.epochs} · iteration {done}/{self.iterations} · loss {now['loss']:.4f} · "
            f"std {now['std']:.4f} ({share:.2f} of 1/√{self.dim}) · lr {_rates(now)}{self._speed(storage, done)}"
        )

    def _speed(self, storage: EventStorage, done: int) -> str:
        """Images a second, the share of time spent waiting for data, time to go; once steps have been timed."""
        if "time" not in storage.histories():
            return ""
        step = storage.history("time").median(20)
        wait = storage.history("data_time_share").median(20)
        eta = clock(storage.history("time").median(1000) * (self.iterations - done))
        return f" · {self.batch_size / step:.1f} images/s · data {wait:.0%} · ETA {eta}"


def _rates(now: dict[str, float]) -> str:
    """The groups' learning rates, the predictor's where it has one of its own."""
    rates = [now["lr"], *(value for name, value in sorted(now.items()) if name.startswith("lr_"))]
    return " / ".join(f"{rate:.4g}" for rate in rates)


def build_writers(
    folder: Path, start: int, epochs: int, iterations: int, batch_size: int, dim: int, tensorboard: bool
) -> list[EventWriter]:
    """The main process's writers for a run that goes on at iteration `start`.

    What metrics.json and TensorBoard hold of iterations from `start` on is taken back: they will be done again.
    """
    truncate_metrics(folder / METRICS, start)
    writers = [Console(epochs, iterations, batch_size, dim), JSONWriter(str(folder / METRICS))]
    if tensorboard:
        writers.append(TensorboardXWriter(str(folder / "tensorboard"), purge_step=start))
    return writers


def truncate_metrics(path: Path, start: int) -> None:
    """Drop a metrics file's lines of iterations from `start` on, and a last line that was cut short."""
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if _iteration(line) < start]
    if kept != lines:
        write_text(path, "".join(kept))


def _iteration(line: str) -> float:
    """A line's iteration; infinite where the line is no JSON object that has one."""
    try:
        return float(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):
        return math.inf
