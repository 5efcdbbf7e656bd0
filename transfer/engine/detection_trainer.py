"""The training loop: Detectron2's step and hooks, and a recorded end of a run that diverges."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer, TrainerBase
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from torch import nn

from ssl_transfer.errors import Preempted
from ssl_transfer.training.collectives import wrap_distributed
from ssl_transfer.training.divergence import Diverged
from transfer.engine.guards import FiniteLossGuard
from transfer.engine.seeding import STEP, seed_torch

logger = logging.getLogger(__name__)


class DetectionTrainer(TrainerBase):
    """Trains a detector; hooks do everything but the step itself.

    Args:
        cfg: the resolved config, `SEED` included.
        model: the detector, on its device, not in DistributedDataParallel.

    Attributes:
        detector: `model`.
        optimizer, scheduler: Detectron2's, built from `cfg`.
        stepper: Detectron2's SimpleTrainer or AMPTrainer, which runs the step.
        divergence: None, or the `divergence` of the result.
    """

    iter: int  # TrainerBase's

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        super().__init__()
        self.cfg, self.detector = cfg, model
        self.optimizer = build_optimizer(cfg, model)
        self.scheduler = build_lr_scheduler(cfg, self.optimizer)
        self.model = FiniteLossGuard(wrap_distributed(model), model.proposal_generator.rpn_head)  # type: ignore[union-attr, arg-type]
        stepper = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self.stepper: SimpleTrainer = stepper(self.model, (), self.optimizer)
        self.divergence: dict[str, Any] | None = None

    def run(self, batches: Iterable[list[dict[str, Any]]], start: int) -> None:
        """Train from iteration `start` to `SOLVER.MAX_ITER`, or until a loss is no longer finite.

        Args:
            batches: this rank's batches from iteration `start` on.
            start: the first iteration; MAX_ITER when only the hooks' `after_train` remains.

        Raises:
            Preempted: a hook stopped the run after a checkpoint.
        """
        self.stepper.data_loader = batches
        try:
            self.train(start, self.cfg.SOLVER.MAX_ITER)
        except Diverged as error:
            self.divergence = Diverged(error.what, self.iter, [self._lr()]).record()
            logger.error("diverged at iteration %d, lr %g: %s", self.iter, self._lr(), error.what)
        except Preempted as stop:
            logger.info("stopped: %s", stop)
            raise
        finally:
            self.stepper.reset_data_loader(tuple)  # ends the loader's processes

    def after_train(self) -> None:
        """Run the hooks' last part, after the same iteration whether steps remained or not."""
        self.iter = min(self.iter, self.max_iter)
        super().after_train()

    def run_step(self) -> None:
        """One step; its RoI and anchor sampling depends only on (seed, rank, iteration)."""
        seed_torch(self.cfg.SEED, STEP, comm.get_rank(), self.iter)
        self.stepper.iter = self.iter
        self.stepper.run_step()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the detector's weights."""
        return {**super().state_dict(), "stepper": self.stepper.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        super().load_state_dict(state_dict)
        self.stepper.load_state_dict(state_dict["stepper"])

    def _lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])
