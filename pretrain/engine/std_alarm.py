"""The collapse alarm: std far below 1/√d for many steps in a row."""

from __future__ import annotations

import logging
import math
from typing import Any

from detectron2.engine.train_loop import HookBase
from fvcore.common.config import CfgNode
from torch.nn.modules.batchnorm import _BatchNorm

from pretrain.engine.results import StepResult
from pretrain.engine.trainer import Trainer
from pretrain.methods.base import Method

_log = logging.getLogger(__name__)


class StdAlarm(HookBase):
    """Rings where std has been too far below 1/√d for too long: a warning, and `std_alarm` 1 in the metrics.

    Too far is below STD_ALARM of the way from the lowest value it can take to 1/√d: a tenth of 1/√d where nothing keeps
    it from 0. Register the alarm before the checkpoints' hook, so that a run it stops keeps the checkpoint before.

    Args:
        dim: d, the width of the embedding.
        keys: the MONITOR keys: the share, the steps, and whether the run ends there, as diverged.
        lowest: the lowest value of std as a share of 1/√d.

    Attributes:
        record: when it first rang (`iteration`, `std`) and the `lowest` std while it did; None where it never has.
    """

    trainer: Trainer

    def __init__(self, dim: int, keys: CfgNode, lowest: float = 0.0) -> None:
        self.dim, self.steps, self.stop = dim, keys.STD_ALARM_STEPS, keys.STD_ALARM_STOP
        self.share = lowest + (1 - lowest) * keys.STD_ALARM if keys.STD_ALARM else 0.0
        self.record: dict[str, float] | None = None
        self._below = 0

    def after_step(self) -> None:
        """Count, and ring where it is time to.

        Raises:
            Diverged: it rings, and a run is to stop then.
        """
        for result in self.trainer.heard:
            self._look(result)

    def _look(self, result: StepResult) -> None:
        std = result.values["std"]
        self._below = self._below + 1 if std < self.share / math.sqrt(self.dim) else 0
        ringing = self._below >= self.steps
        self.trainer.storage.put_scalar("std_alarm", float(ringing), smoothing_hint=False)
        if not ringing:
            return
        what = f"std, {std:.3g}, has been below {self.share:.3g} of 1/√{self.dim} for {self._below} steps"
        if self._below == self.steps:
            _log.warning(f"collapse? {what} at iteration {result.iteration}")
        first = self.record or {"iteration": result.iteration, "std": std, "lowest": std}
        self.record = {**first, "lowest": min(first["lowest"], std)}
        if self.stop:
            self.trainer.diverge(what, result)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on counting."""
        return {"below": self._below, "record": self.record}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self._below, self.record = state["below"], state["record"]


def lowest_share(method: Method, images: int) -> float:
    """How far std falls in a collapse, as a share of 1/√d: not to 0 where batch normalisation ends the projector.

    When all samples but one coincide, the one carries the channel's unit variance: after normalising N samples it lies
    at √(N − 1), the others at −1/√(N − 1), in each channel up to sign, which makes std 2√(N − 1)/N of 1/√d.

    Args:
        method: its `projector`, where it has one, makes the embedding.
        images: N, over which batch normalisation goes.
    """
    projector = getattr(method, "projector", None)
    if projector is None or not isinstance(list(projector.modules())[-1], _BatchNorm):
        return 0.0
    return 2 * math.sqrt(images - 1) / images
