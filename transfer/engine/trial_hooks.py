"""The trial's own hooks: checkpoints and the time of training."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage, EventWriter, JSONWriter, TensorboardXWriter, get_event_storage

from ssl_transfer.training.logs import ProgressLine, describe_eta
from transfer.engine.trial_folder import TrialCheckpoints

WINDOW = 20
"""Iterations that Detectron2's writers smooth over."""


class WriteCheckpoints(HookBase):
    """Write a checkpoint every `period` iterations, and the final one after the last.

    Args:
        checkpoints: of the trial's folder.
        period: iterations between two of them; 0: only the final one.
    """

    def __init__(self, checkpoints: TrialCheckpoints, period: int) -> None:
        self.checkpoints, self.period = checkpoints, period

    def after_step(self) -> None:
        """Save where a save is due."""
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter:
            self.checkpoints.save_final(self.trainer.detector.state_dict(), self.trainer.iter)
        elif self.period > 0 and done % self.period == 0:
            self.save()

    def save(self) -> None:
        """Save a checkpoint to resume from."""
        trainer = self.trainer
        self.checkpoints.save(trainer.detector.state_dict(), trainer.state_dict(), trainer.iter)


class TrainingLine(ProgressLine):
    """Iteration, loss, learning rate, seconds per iteration, remaining time; also gives `eta_seconds` to metrics.json.

    Args:
        total: iterations.
    """

    def __init__(self, total: int) -> None:
        super().__init__(total, "total_loss")

    def write(self) -> None:
        storage = get_event_storage()
        if "time" in storage.histories() and storage.iter < self.total:
            seconds = storage.history("time").median(1000) * (self.total - storage.iter - 1)
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
        super().write()

    def describe(self, storage: EventStorage, now: Mapping[str, float], done: int) -> str:
        speed = f" · {storage.history('time').median(WINDOW):.2f} s/iteration" if "time" in now else ""
        lr = f" · lr {now['lr']:.4g}" if "lr" in now else ""
        loss = storage.history(self.key).median(WINDOW)
        return f"iteration {done}/{self.total} · loss {loss:.4f}{lr}{speed}{describe_eta(storage, self.total - done)}"


class MetricHistory(HookBase):
    """Continues the values that metrics.json is smoothed over, so that a resumed trial logs what an unbroken one does.

    Detectron2's writers print the median of the last WINDOW iterations, and a value that is measured less often (an
    evaluation) at their next turn. Register it before the writers' hook.

    Args:
        writers: of this process; empty on others than the main one.
    """

    def __init__(self, writers: Sequence[EventWriter]) -> None:
        self.writers = [writer for writer in writers if isinstance(writer, (JSONWriter, TensorboardXWriter))]
        self._state: dict[str, Any] = {}

    def before_train(self) -> None:
        """Fill the new storage, and tell the writers what they have written."""
        storage: Any = self.trainer.storage
        for name, values in self._state.get("histories", {}).items():
            for value, iteration in values:
                storage.put_scalar(name, value, self._state["smoothed"][name], iteration)
        for writer in self.writers:
            writer._last_write = self._state.get("written", -1)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: the last WINDOW iterations of each value, oldest first."""
        storage = self.trainer.storage
        histories = {}
        for name, history in storage.histories().items():
            if name.endswith(("time", "seconds")):
                continue  # of the process; the next one's timer begins later, so a line would hold nothing else
            values = history.values()[-WINDOW:]
            histories[name] = [[value, iteration] for value, iteration in values if iteration > values[-1][1] - WINDOW]
        written = max((writer._last_write for writer in self.writers), default=-1)
        return {"histories": histories, "smoothed": dict(storage.smoothing_hints()), "written": written}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self._state = dict(state)


def first_line(checkpoint: dict[str, Any] | None) -> int:
    """The iteration from which on metrics.json is written again by a trial that resumes from a checkpoint."""
    if checkpoint is None:
        return 0
    state = checkpoint.get("trainer", checkpoint).get("hooks", {}).get(MetricHistory.__qualname__)
    return int(state["written"] if state else checkpoint["iteration"]) + 1


class Stopwatch(HookBase):
    """Wall-clock time of all steps, over all resumed parts. Register it first: then no other hook's time is included.

    Attributes:
        seconds: in steps, data loading included; hooks not.
        iterations: number of these steps.
    """

    def __init__(self) -> None:
        self.seconds, self.iterations = 0.0, 0
        self._start = 0.0

    def before_step(self) -> None:
        """Start."""
        self._start = time.perf_counter()

    def after_step(self) -> None:
        """Stop."""
        self.seconds += time.perf_counter() - self._start
        self.iterations += 1

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"seconds": self.seconds, "iterations": self.iterations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.seconds, self.iterations = float(state["seconds"]), int(state["iterations"])
