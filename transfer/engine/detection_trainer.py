"""The training loop: Detectron2's step and hooks, and a clean end for a run that diverges."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer, TrainerBase
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from common.errors import Preempted
from transfer.engine.guards import Diverged, FiniteLossGuard
from transfer.engine.seeding import STEP, seed_torch

logger = logging.getLogger(__name__)


class DetectionTrainer(TrainerBase):
    """Trains a detector; everything but the step itself is a hook's.

    Args:
        cfg: the resolved config, `SEED` included.
        model: the detector, on its device, not wrapped.

    Attributes:
        detector: the model as it was given.
        optimizer, scheduler: Detectron2's, built from `cfg`.
        stepper: Detectron2's SimpleTrainer or AMPTrainer, which makes the step.
        divergence: None, or what a result says of a run that diverged.
    """

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
            batches: this rank's batches, the first of them iteration `start`'s.
            start: the first iteration to do; MAX_ITER when only the hooks' `after_train` is left.

        Raises:
            Preempted: a hook stopped the run after a checkpoint.
        """
        self.stepper.data_loader = batches
        self.iter = self.start_iter = start
        self.max_iter = self.cfg.SOLVER.MAX_ITER
        with EventStorage(start) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start, self.max_iter):  # noqa: B020
                    self.before_step()
                    self.run_step()
                    self.after_step()
                self.iter = self.max_iter
            except Diverged as error:
                self.divergence = {"iteration": self.iter, "lr": self._lr(), "what": str(error)}
                logger.error("diverged at iteration %d, lr %g: %s", self.iter, self._lr(), error)
            except Preempted as stop:
                logger.info("stopped: %s", stop)
                raise
            finally:
                self.after_train()
                self.stepper.reset_data_loader(tuple)  # the loader's processes end with it

    def run_step(self) -> None:
        """One step; its RoI and anchor sampling depends on (seed, rank, iteration) alone."""
        seed_torch(self.cfg.SEED, STEP, comm.get_rank(), self.iter)
        self.stepper.iter = self.iter
        self.stepper.run_step()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the detector's weights."""
        return {**super().state_dict(), "stepper": self.stepper.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where `state_dict` was taken."""
        super().load_state_dict(state_dict)
        self.stepper.load_state_dict(state_dict["stepper"])

    def _lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])


def wrap_distributed(model: nn.Module) -> nn.Module:
    """The model in DistributedDataParallel where there are several processes; each keeps its own running statistics."""
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).is_cuda
    return DistributedDataParallel(
        model, device_ids=[torch.cuda.current_device()] if on_gpu else None, broadcast_buffers=False
    )
