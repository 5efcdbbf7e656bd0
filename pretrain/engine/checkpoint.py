"""Checkpoints: everything a run needs to go on as if it had never stopped."""

from __future__ import annotations

import logging
import pickle
import random
import re
import time
from pathlib import Path
from typing import Any

import torch
from detectron2.engine.train_loop import HookBase
from detectron2.utils import comm
from fvcore.common.config import CfgNode

from common.errors import UserError
from common.files import atomic_write, write_text
from pretrain.engine.trainer import Trainer

FORMAT = "pretrain-checkpoint/1"
NAME = re.compile(r"checkpoint_(\d{7,})\.pth")
LAST = "last_checkpoint"
_log = logging.getLogger(__name__)


def checkpoints(folder: Path) -> list[Path]:
    """The folder's checkpoints, oldest first. Each is whole: they are renamed into place."""
    return sorted((p for p in folder.glob("checkpoint_*.pth") if NAME.fullmatch(p.name)), key=iterations_of)


def iterations_of(path: Path) -> int:
    """How many iterations a checkpoint's name says were done."""
    match = NAME.fullmatch(path.name)
    return int(match.group(1)) if match else 0


def load_latest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint's content on the CPU, or None where there is none; the main process says which it is.

    Raises:
        UserError: it cannot be read or is something else; says how to go on from the one before.
    """
    found = [path.name for path in checkpoints(folder)[-1:]]
    names: list[str] = comm.all_gather(found)[0]  # a shared file system may not show every node the newest yet
    if not names:
        return None
    newest = folder / names[0]
    try:
        state = torch.load(newest, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        raise UserError(_unusable(newest, str(error).split("\n")[0])) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(_unusable(newest, f"it is not of the format {FORMAT}"))
    return state


def _unusable(path: Path, why: str) -> str:
    return f"checkpoint {path} cannot be used ({why}); move it away to resume from the one before it, or from the start"


def random_state() -> dict[str, Any]:
    """The state of this process's random generators. (Data and augmentation use none of them.)"""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"python": random.getstate(), "torch": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """Put `random_state` back; a GPU's is skipped where there is none now."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class Checkpoints(HookBase):
    """Writes a checkpoint at each epoch's end, every PERIOD iterations, at the last step and before a stop.

    The state holds the method's tensors, the optimiser, the gradient scaler, the random generators of every process,
    the iteration (which is the position in the epoch: see `EpochBatches`), the other hooks' states, and what the caller
    adds. Only files that this run wrote are ever removed.

    Args:
        folder: where they are written, as `checkpoint_<iterations done>.pth`, with `last_checkpoint` naming the newest.
        steps_per_epoch: iterations an epoch.
        keys: the CHECKPOINT keys: when they are written and which of them stay.
        extra: plain values to store as they are.
        seconds: how long the run had taken before this process took it up.
    """

    trainer: Trainer

    def __init__(
        self, folder: Path, steps_per_epoch: int, keys: CfgNode, extra: dict[str, Any], seconds: float = 0.0
    ) -> None:
        self.folder, self.steps_per_epoch, self.period = folder, steps_per_epoch, keys.PERIOD
        self.keep, self.keep_every = keys.KEEP, keys.KEEP_EVERY
        self.extra = extra
        self._written: list[str] = []
        self._start = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        """Wall-clock seconds the run has taken so far, over all its resumptions."""
        return time.perf_counter() - self._start

    def after_step(self) -> None:
        """Write one where it is due."""
        done = self.trainer.iter + 1
        last = done == self.trainer.max_iter
        due = done % self.steps_per_epoch == 0 or (self.period and done % self.period == 0)
        if due or last or self.trainer.stopping:
            self.save(done)

    def save(self, done: int) -> None:
        """Write the state after `done` iterations; every process must call it.

        Raises:
            Diverged: a weight is not finite: what is on disk stays the last good state.
        """
        self._check_weights()
        rng = comm.gather(random_state())
        if comm.is_main_process():
            path = self.folder / f"checkpoint_{done:07d}.pth"
            self._written.append(path.name)
            with atomic_write(path) as stream:
                torch.save({**self._state(done), "random": rng}, stream)
            write_text(self.folder / LAST, path.name + "\n")
            self._prune()
        comm.synchronize()

    def _prune(self) -> None:
        """Remove what this run wrote and need not keep."""
        for name in self._written[: -self.keep]:
            if not self._stays(iterations_of(Path(name))):
                (self.folder / name).unlink(missing_ok=True)
                self._written.remove(name)

    def _stays(self, done: int) -> bool:
        return self.keep_every > 0 and done % (self.keep_every * self.steps_per_epoch) == 0

    def state_dict(self) -> dict[str, Any]:
        """Which files this run wrote."""
        return {"written": list(self._written)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the record of the files."""
        self._written = list(state["written"])

    def _state(self, done: int) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "iteration": done,
            "method": self.trainer.method.state_dict(),
            "optimizer": self.trainer.optimizer.state_dict(),
            "scaler": self.trainer.scaler.state_dict(),
            "latest": self.trainer.latest,
            "hooks": {name: hook.state_dict() for name, hook in _stateful(self.trainer)},
            "seconds": self.seconds,
            **self.extra,
        }

    def _check_weights(self) -> None:
        tensors = [t for t in self.trainer.method.state_dict().values() if t.is_floating_point()]
        if not torch.isfinite(torch.stack([t.double().norm() for t in tensors]).sum()):
            self.trainer.diverge("a weight is not a finite number")


def restore(trainer: Trainer, state: dict[str, Any]) -> None:
    """Put a checkpoint's state into a freshly built trainer and its hooks.

    The caller starts it at `state["iteration"]`. A hook that the checkpoint does not know starts afresh.
    """
    trainer.method.load_state_dict(state["method"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.scaler.load_state_dict(state["scaler"])
    trainer.latest, trainer.iter = dict(state["latest"]), state["iteration"]
    for name, hook in _stateful(trainer):
        if name in state.get("hooks", {}):
            hook.load_state_dict(state["hooks"][name])
    ranks = state["random"]
    set_random_state(ranks[comm.get_rank() % len(ranks)])
    _log.info("resumed after %d iterations", state["iteration"])


def _stateful(trainer: Trainer) -> list[tuple[str, Any]]:
    """The trainer's hooks that remember something between steps, by their classes' names."""
    return [(type(hook).__name__, hook) for hook in trainer._hooks if hasattr(hook, "load_state_dict")]
