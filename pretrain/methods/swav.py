"""SwAV: a view predicts the cluster that its image's other view was assigned to online (arXiv 2006.09882).

With two views, as the SimSiam paper compares it, and its third layer in the projector (its appendix C). Its section 6.2
appends a predictor, and lets the gradient through the assignments: both are arguments.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import nn
from torchvision.models import ResNet

from common.errors import UserError
from pretrain.data.dataset import Batch
from pretrain.methods.base import Course, Method, Output, unit
from pretrain.methods.parts.queue import Queue
from pretrain.methods.parts.sinkhorn import sinkhorn
from pretrain.models.encoder import build_encoder
from pretrain.models.heads import optional_predictor, projector
from pretrain.rules import Rule, must_hold, must_keep_default


class SwAV(Method):
    """The siamese network, f as encoder and projector, and K prototypes in place of a comparison with other images.

    Both views go through f as one batch, as in the released code. Scores are cosines with the prototypes, which are
    brought to unit length before each step. In the first steps their gradient is dropped, so that neither momentum nor
    weight decay moves them.

    The queue, for batches that are small beside K, holds the outputs of the steps before, each view's apart. It joins
    the assignments once it is full. Every process holds the whole and brings a share of it to the assignments.

    Args:
        encoder: gives features (N, width).
        projector: the rest of f, (N, width) → (N, d).
        predictor: h, (N, d) → (N, d), on the branch that predicts; None is the identity.
        dim: d.
        prototypes: K.
        temperature: τ of the prediction.
        epsilon: ε of the assignment.
        sinkhorn_steps: how many times it is scaled.
        freeze: steps from the first that leave the prototypes as they are.
        stop_gradient: whether assignments are constants.
        queue: images in the queue; 0 is none.
        queue_steps: steps that fill it.
        queue_start: the epoch from which on it is filled.
    """

    def __init__(
        self,
        encoder: ResNet,
        projector: nn.Module,
        predictor: nn.Module | None,
        dim: int,
        prototypes: int = 3000,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        sinkhorn_steps: int = 3,
        freeze: int = 313,
        stop_gradient: bool = True,
        queue: int = 0,
        queue_steps: int = 0,
        queue_start: int = 15,
    ) -> None:
        super().__init__()
        self.encoder, self.projector, self.predictor = encoder, projector, predictor
        self.prototypes = nn.Linear(dim, prototypes, bias=False)
        self.dim, self.temperature, self.freeze = dim, temperature, freeze
        self.epsilon, self.sinkhorn_steps, self.stop_gradient = epsilon, sinkhorn_steps, stop_gradient
        self.queues = nn.ModuleList(Queue(queue, dim) for _ in range(2 if queue else 0))  # one a view
        self.queue_steps, self.queue_start = queue_steps, queue_start
        self._queue_age, self._steps_per_epoch = -1, 1

    def prepare(self, course: Course) -> None:
        """Take down how long an epoch is."""
        self._steps_per_epoch = course.steps_per_epoch

    @torch.no_grad()
    def before_step(self, iteration: int, batch: Batch) -> None:
        """Bring the prototypes to unit length, and count for how many steps the queue has been filled."""
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
        self._queue_age = iteration - self.queue_start * self._steps_per_epoch

    def after_backward(self, iteration: int) -> None:
        """Drop the prototypes' gradient in the first steps."""
        if iteration < self.freeze:
            self.prototypes.weight.grad = None

    def forward(self, *views: torch.Tensor) -> Output:
        """L = ½ ℓ(z1, q2) + ½ ℓ(z2, q1), ℓ the cross-entropy of a view's prediction with the other's assignment."""
        z = self.projector(self.encoder(torch.cat(views)))
        p = z if self.predictor is None else self.predictor(z)
        with torch.autocast(z.device.type, enabled=False):
            z1, z2 = unit(z).chunk(2)
            p1, p2 = unit(p).chunk(2)
            q1, q2 = (self._codes(outputs, view) for view, outputs in enumerate((z1, z2)))
            loss = (self._swapped(p1, q2) + self._swapped(p2, q1)) / 2
        return Output(loss, z.chunk(2)[0].detach())

    def _swapped(self, outputs: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """ℓ(z, q) = −Σ_k q_k log softmax_k(zᵀc_k / τ), the mean over the rows of z (N, d) and q (N, K)."""
        return -(codes * F.log_softmax(self.prototypes(outputs) / self.temperature, dim=1)).sum(1).mean()

    def _codes(self, outputs: torch.Tensor, view: int) -> torch.Tensor:
        """The assignments (N, K) of a view's outputs, with what the queue holds of that view, which they then enter."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.stop_gradient):
            scores = self.prototypes(torch.cat([outputs, *self._queued(view)]))
            codes = sinkhorn(scores, self.epsilon, self.sinkhorn_steps)[: len(outputs)]
        if self.queues and self._queue_age >= 0:
            self._queue(view).replace_oldest(outputs)
        return codes

    def _queued(self, view: int) -> list[torch.Tensor]:
        """This process's share of the queue, once it is full: counted in steps, so that no GPU is waited for."""
        if not self.queues or self._queue_age < self.queue_steps:
            return []
        rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        return [self._queue(view).keys[rank::processes]]

    def _queue(self, view: int) -> Queue:
        queue = self.queues[view]
        assert isinstance(queue, Queue)
        return queue


def keys() -> CfgNode:
    """SwAV's own keys."""
    node = CfgNode()
    # K, the number of prototypes.
    node.PROTOTYPES = 3000
    # Iterations from the first that leave the prototypes as they are.
    node.FREEZE_STEPS = 313
    # τ: what scores are divided by in the prediction.
    node.TEMPERATURE = 0.1
    # ε of Sinkhorn-Knopp, which makes the assignments, and how many times it scales them.
    node.EPSILON = 0.05
    node.SINKHORN_STEPS = 3
    # Images of earlier steps that join the assignments: a multiple of SOLVER.BATCH_SIZE; 0 = none, as with batch 4096
    # (the released code's recipes for batch 256: 3840). And the epoch (from 0) from which on the queue is filled.
    node.QUEUE = 0
    node.QUEUE_START = 15
    # Whether assignments are constants (section 6.2 of the SimSiam paper: without, training diverges).
    node.STOP_GRADIENT = True
    return node


_RULES: tuple[Rule, ...] = (
    ("SWAV.PROTOTYPES SWAV.SINKHORN_STEPS", lambda v: v >= 1, "1 or more"),
    ("SWAV.FREEZE_STEPS SWAV.QUEUE SWAV.QUEUE_START", lambda v: v >= 0, "0 or more"),
    ("SWAV.TEMPERATURE SWAV.EPSILON", lambda v: v > 0, "above 0"),
)


def check(cfg: CfgNode) -> None:
    """Raise UserError for values of SWAV that cannot be."""
    must_hold(cfg, _RULES)
    queue, batch = cfg.SWAV.QUEUE, cfg.SOLVER.BATCH_SIZE
    if queue % batch:
        raise UserError(f"SWAV.QUEUE is {queue}; it must be a multiple of SOLVER.BATCH_SIZE, which is {batch}")
    if not queue:
        must_keep_default(cfg, ["SWAV.QUEUE_START"], "SWAV.QUEUE is 0: there is no queue to start")
        return
    if cfg.SWAV.QUEUE_START >= cfg.SOLVER.EPOCHS:
        start, epochs = cfg.SWAV.QUEUE_START, cfg.SOLVER.EPOCHS
        raise UserError(f"SWAV.QUEUE_START is {start}; it must be less than SOLVER.EPOCHS, which is {epochs}")
    if cfg.ENGINE.COMPILE:
        raise UserError("ENGINE.COMPILE is True; with SWAV.QUEUE it must be False, for the queue changes between steps")


def build(cfg: CfgNode) -> SwAV:
    """SwAV as the MODEL and SWAV keys spell it, freshly initialised: encoder, projector, predictor, then prototypes."""
    model, swav = cfg.MODEL, cfg.SWAV
    encoder, width = build_encoder(model.ARCH, model.ZERO_INIT_RESIDUAL)
    return SwAV(
        encoder,
        projector(width, model.PROJ_HIDDEN, model.DIM, model.PROJ_LAYERS, model.HEAD_BN, model.PROJ_BN_AFFINE),
        optional_predictor(model.PREDICTOR, model.DIM, model.PRED_DIM, model.HEAD_BN),
        model.DIM,
        swav.PROTOTYPES,
        swav.TEMPERATURE,
        swav.EPSILON,
        swav.SINKHORN_STEPS,
        swav.FREEZE_STEPS,
        swav.STOP_GRADIENT,
        swav.QUEUE,
        swav.QUEUE // cfg.SOLVER.BATCH_SIZE,
        swav.QUEUE_START,
    )
