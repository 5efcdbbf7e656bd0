"""Checkpoints of a pre-training run: all state that a resumed run needs to end like an uninterrupted one."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch
from detectron2.engine.train_loop import HookBase
from detectron2.utils import comm
from fvcore.common.config import CfgNode

from pretrain.engine.trainer import Trainer
from ssl_transfer.training.checkpoint import CheckpointFolder, load_checkpoint, random_state, set_random_state

FORMAT = "pretrain-checkpoint/1"
PREFIX = "checkpoint"

HOOK_KEYS = {"CollapseDetector": "StdAlarm", "PeriodicCheckpoint": "Checkpoints"}
"""The keys of the hooks' states in a file of this format, where they are not the class names."""

_log = logging.getLogger(__name__)


def load_latest(folder: Path) -> dict[str, Any] | None:
    """Read the newest checkpoint that is whole; tensors are on the CPU. None where there is none.

    Every process must call it. Damaged ones are set aside.

    Raises:
        UserError: it is something else; the message says how to resume from the one before.
    """
    newest = CheckpointFolder(folder, PREFIX).newest()
    if newest is None:
        return None
    remedy = "move it away to resume from the one before it, or from the start"
    return load_checkpoint(newest, _reject, remedy)


def _reject(content: dict[str, Any]) -> str | None:
    return None if content.get("format") == FORMAT else f"it is not of the format {FORMAT}"


class PeriodicCheckpoint(HookBase):
    """Writes a checkpoint at each epoch's end, every PERIOD iterations, at the last step and before a stop.

    It holds the method's tensors, the optimizer, the gradient scaler, the random generators of every process, the
    iteration (which gives the position in the epoch), the other hooks' states and the values in `extra`. Only files
    that this run wrote are ever removed.

    Args:
        folder: of the files `checkpoint_<iterations done>.pth` and of `last_checkpoint`, which names the newest.
        steps_per_epoch: iterations per epoch.
        keys: the CHECKPOINT keys: when checkpoints are written and how many are kept.
        extra: plain values to store.
        seconds: duration of the run before this process resumed it.
    """

    trainer: Trainer

    def __init__(
        self, folder: Path, steps_per_epoch: int, keys: CfgNode, *, extra: dict[str, Any], seconds: float = 0.0
    ) -> None:
        self.checkpoints, self.steps_per_epoch = CheckpointFolder(folder, PREFIX), steps_per_epoch
        self.period, self.keep, self.keep_every = keys.PERIOD, keys.KEEP, keys.KEEP_EVERY
        self.extra = extra
        self._written: list[str] = []
        self._start = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the run so far, including those before it was resumed."""
        return time.perf_counter() - self._start

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        last = done == self.trainer.max_iter
        due = done % self.steps_per_epoch == 0 or (self.period and done % self.period == 0)
        if due or last or self.trainer.stopping:
            self.save(done)

    def save(self, done: int) -> None:
        """Write the state after `done` iterations; every process must call it.

        Raises:
            Diverged: a weight is not finite. The checkpoints on disk stay the last good state.
        """
        self._check_weights()
        rng = comm.gather(random_state())
        if comm.is_main_process():
            name = self.checkpoints.path(done).name
            self._written.append(name)
            self.checkpoints.write(name, {**self._state(done), "random": rng})
            self._prune()
        comm.synchronize()

    def _prune(self) -> None:
        for name in self._written[: -self.keep]:
            if not self._is_permanent(self.checkpoints.number(name) or 0):
                (self.checkpoints.folder / name).unlink(missing_ok=True)
                self._written.remove(name)

    def _is_permanent(self, done: int) -> bool:
        return self.keep_every > 0 and done % (self.keep_every * self.steps_per_epoch) == 0

    def state_dict(self) -> dict[str, Any]:
        return {"written": list(self._written)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._written = list(state["written"])

    def _state(self, done: int) -> dict[str, Any]:
        hooks = self.trainer.state_dict().get("hooks", {})
        return {
            "format": FORMAT,
            "iteration": done,
            "method": self.trainer.method.state_dict(),
            "optimizer": self.trainer.optimizer.state_dict(),
            "scaler": self.trainer.scaler.state_dict(),
            "latest": self.trainer.latest,
            "hooks": {HOOK_KEYS.get(name, name): state for name, state in hooks.items()},
            "seconds": self.seconds,
            **self.extra,
        }

    def _check_weights(self) -> None:
        tensors = [t for t in self.trainer.method.state_dict().values() if t.is_floating_point()]
        if not torch.isfinite(torch.stack([t.double().norm() for t in tensors]).sum()):
            self.trainer.diverge("a weight is not a finite number")


def restore(trainer: Trainer, state: dict[str, Any]) -> None:
    """Restore a checkpoint into a newly built trainer and its hooks; hooks without a stored state start afresh.

    The caller starts the trainer at `state["iteration"]`.
    """
    names = {key: name for name, key in HOOK_KEYS.items()}
    hooks = {names.get(key, key): value for key, value in state.get("hooks", {}).items()}
    trainer.load_state_dict({"iteration": state["iteration"], "hooks": hooks})
    trainer.method.load_state_dict(state["method"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.scaler.load_state_dict(state["scaler"])
    trainer.latest = dict(state["latest"])
    ranks = state["random"]
    set_random_state(ranks[comm.get_rank() % len(ranks)])
    _log.info("resumed after %d iterations", state["iteration"])
