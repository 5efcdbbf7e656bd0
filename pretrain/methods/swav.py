"""SwAV: a view predicts the cluster assignment of the image's other view, computed online (arXiv 2006.09882).

With two views and a third layer in the projector, as the SimSiam paper compares it (its appendix C). Its section 6.2
adds a predictor, and removes the stop-gradient of the assignments: both are arguments.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import nn
from torchvision.models import ResNet

from pretrain.data.dataset import Batch
from pretrain.methods.base import Method, MethodOutput, TrainingInfo, l2_normalize, section_arguments
from pretrain.methods.parts.losses import sinkhorn
from pretrain.methods.parts.momentum import FeatureQueue
from pretrain.models.heads import build_encoder_and_projector, build_optional_predictor
from pretrain.rules import Rule, check_choices, check_rules, reject_unused_keys
from ssl_transfer.errors import UserError

NORMALIZED, WEIGHT_NORM = "normalized", "weight_norm"


class SwAV(Method):
    """Siamese network, f as encoder and projector, with K prototypes in place of negative images.

    Both views pass through f as one batch, as in the released code. Scores are cosines with the prototypes. These are
    scaled to unit length before each step, outside the gradient (the released code), or inside the gradient: zᵀc/‖c‖,
    where c is not rescaled (footnote 8 of the SimSiam paper). In the first steps their gradient is dropped, so neither
    momentum nor weight decay changes them.

    The queue, for batches that are small compared with K, holds the outputs of earlier steps, separately for each view.
    It takes part in the assignments once it is full. Every process stores all of it and uses a part in assignments.

    Args:
        encoder: maps images to features (N, width).
        projector: the rest of f, (N, width) → (N, d).
        predictor: h, (N, d) → (N, d), on the predicting branch; None for the identity.
        dim: d.
        prototypes: K.
        prototype_norm: NORMALIZED (before each step) or WEIGHT_NORM (inside the gradient).
        temperature: τ of the prediction.
        epsilon: ε of the assignment.
        sinkhorn_steps: number of scaling steps of the assignment.
        freeze_steps: number of first steps with fixed prototypes.
        stop_gradient: whether assignments are constants.
        queue: images in the queue; 0 for none.
        queue_steps: number of steps that fill the queue.
        queue_start: first epoch in which outputs enter the queue.
    """

    def __init__(
        self,
        encoder: ResNet,
        projector: nn.Module,
        predictor: nn.Module | None,
        dim: int,
        *,
        prototypes: int = 3000,
        prototype_norm: str = NORMALIZED,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        sinkhorn_steps: int = 3,
        freeze_steps: int = 313,
        stop_gradient: bool = True,
        queue: int = 0,
        queue_steps: int = 0,
        queue_start: int = 15,
    ) -> None:
        super().__init__()
        self.encoder, self.projector, self.predictor = encoder, projector, predictor
        self.prototypes, self.prototype_norm = nn.Linear(dim, prototypes, bias=False), prototype_norm
        self.dim, self.temperature, self.freeze_steps = dim, temperature, freeze_steps
        self.epsilon, self.sinkhorn_steps, self.stop_gradient = epsilon, sinkhorn_steps, stop_gradient
        self.queues = nn.ModuleList(FeatureQueue(queue, dim) for _ in range(2 if queue else 0))  # one per view
        self.queue_steps, self.queue_start = queue_steps, queue_start
        self._queue_age, self._steps_per_epoch = -1, 1

    def prepare(self, info: TrainingInfo) -> None:
        """Store the length of an epoch."""
        self._steps_per_epoch = info.steps_per_epoch

    @torch.no_grad()
    def before_step(self, iteration: int, batch: Batch) -> None:
        """Scale the prototypes to unit length if NORMALIZED, and count the steps that have entered the queue."""
        if self.prototype_norm == NORMALIZED:
            self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
        self._queue_age = iteration - self.queue_start * self._steps_per_epoch

    def after_backward(self, iteration: int) -> None:
        """Drop the prototypes' gradient in the first steps."""
        if iteration < self.freeze_steps:
            self.prototypes.weight.grad = None

    def forward(self, *views: torch.Tensor) -> MethodOutput:
        """L = ½ ℓ(z1, q2) + ½ ℓ(z2, q1), ℓ the cross-entropy of a view's prediction with the other's assignment."""
        z = self.projector(self.encoder(torch.cat(views)))
        p = z if self.predictor is None else self.predictor(z)
        with torch.autocast(z.device.type, enabled=False):
            z1, z2 = l2_normalize(z).chunk(2)
            p1, p2 = l2_normalize(p).chunk(2)
            q1, q2 = (self._codes(outputs, view) for view, outputs in enumerate((z1, z2)))
            loss = (self._swapped_loss(p1, q2) + self._swapped_loss(p2, q1)) / 2
        return MethodOutput(loss, z.chunk(2)[0].detach())

    def _scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """Cosines (N, K) of outputs (N, d), of unit length, with the prototypes."""
        weight = self.prototypes.weight
        return F.linear(outputs, F.normalize(weight, dim=1) if self.prototype_norm == WEIGHT_NORM else weight)

    def _swapped_loss(self, outputs: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """ℓ(z, q) = −Σ_k q_k log softmax_k(zᵀc_k / τ), averaged over the rows of z (N, d) and q (N, K)."""
        return -(codes * F.log_softmax(self._scores(outputs) / self.temperature, dim=1)).sum(1).mean()

    def _codes(self, outputs: torch.Tensor, view: int) -> torch.Tensor:
        """Assignments (N, K) of a view's outputs, together with the view's queue, which the outputs then enter."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.stop_gradient):
            scores = self._scores(torch.cat([outputs, *self._queued(view)]))
            codes = sinkhorn(scores, self.epsilon, self.sinkhorn_steps)[: len(outputs)]
        if self.queues and self._queue_age >= 0:
            self._queue(view).enqueue(outputs)
        return codes

    def _queued(self, view: int) -> list[torch.Tensor]:
        """This process's part of the queue, once it is full; counting steps avoids synchronizing with the device."""
        if not self.queues or self._queue_age < self.queue_steps:
            return []
        rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        return [self._queue(view).keys[rank::processes]]

    def _queue(self, view: int) -> FeatureQueue:
        queue = self.queues[view]
        assert isinstance(queue, FeatureQueue)
        return queue


def keys() -> CfgNode:
    """SwAV's config section."""
    node = CfgNode()
    # K, the number of prototypes.
    node.PROTOTYPES = 3000
    # How prototypes get unit length: normalized (before each step, outside the gradient, as in the released code) or
    # weight_norm (inside the gradient, as in the SimSiam paper's reproduction, its footnote 8; the recipes' value).
    node.PROTOTYPE_NORM = "normalized"
    # Number of first iterations with fixed prototypes.
    node.FREEZE_STEPS = 313
    # τ: the divisor of scores in the prediction.
    node.TEMPERATURE = 0.1
    # ε of Sinkhorn-Knopp, which computes the assignments, and its number of scaling steps.
    node.EPSILON = 0.05
    node.SINKHORN_STEPS = 3
    # Images of earlier steps that take part in the assignments: a multiple of SOLVER.BATCH_SIZE; 0 = none, as for batch
    # 4096 (the released code's recipes for batch 256: 3840). And the epoch (from 0) in which the queue starts to fill.
    node.QUEUE = 0
    node.QUEUE_START = 15
    # Whether assignments are constants (section 6.2 of the SimSiam paper: otherwise training diverges).
    node.STOP_GRADIENT = True
    return node


_RULES: tuple[Rule, ...] = (
    ("SWAV.PROTOTYPES SWAV.SINKHORN_STEPS", lambda v: v >= 1, "1 or more"),
    ("SWAV.FREEZE_STEPS SWAV.QUEUE SWAV.QUEUE_START", lambda v: v >= 0, "0 or more"),
    ("SWAV.TEMPERATURE SWAV.EPSILON", lambda v: v > 0, "above 0"),
)


def check(cfg: CfgNode) -> None:
    """Raise UserError for values that SwAV does not support."""
    check_choices(cfg, {"SWAV.PROTOTYPE_NORM": (NORMALIZED, WEIGHT_NORM)})
    check_rules(cfg, _RULES)
    queue, batch = cfg.SWAV.QUEUE, cfg.SOLVER.BATCH_SIZE
    if queue % batch:
        raise UserError(f"SWAV.QUEUE is {queue}; it must be a multiple of SOLVER.BATCH_SIZE, which is {batch}")
    if not queue:
        reject_unused_keys(cfg, ["SWAV.QUEUE_START"], "SWAV.QUEUE is 0: there is no queue to start")
        return
    if cfg.SWAV.QUEUE_START >= cfg.SOLVER.EPOCHS:
        start, epochs = cfg.SWAV.QUEUE_START, cfg.SOLVER.EPOCHS
        raise UserError(f"SWAV.QUEUE_START is {start}; it must be less than SOLVER.EPOCHS, which is {epochs}")
    if cfg.ENGINE.COMPILE:
        raise UserError(
            "ENGINE.COMPILE is True; with SWAV.QUEUE it must be False, because the queue changes between steps"
        )


def build(cfg: CfgNode) -> SwAV:
    """SwAV from the MODEL and SWAV keys, initialized in the order encoder, projector, predictor, prototypes."""
    encoder, projector = build_encoder_and_projector(cfg.MODEL)
    predictor, steps = build_optional_predictor(cfg.MODEL), cfg.SWAV.QUEUE // cfg.SOLVER.BATCH_SIZE
    return SwAV(encoder, projector, predictor, cfg.MODEL.DIM, queue_steps=steps, **section_arguments(cfg.SWAV))
