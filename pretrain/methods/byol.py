"""BYOL: predict the target network's output, which follows the online network (arXiv 2006.07733, section 3)."""

from __future__ import annotations

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torchvision.models import ResNet

from common.errors import UserError
from pretrain.methods.base import Course, Method, Output
from pretrain.methods.parts.momentum import follow, untrained_copy
from pretrain.methods.similarity import negative_cosine
from pretrain.models.encoder import build_encoder
from pretrain.models.heads import predictor, projector
from pretrain.optim.momentum_schedule import cosine_momentum
from pretrain.rules import Rule, must_be_named, must_hold

STARTS = ("random", "online")
"""The values of BYOL.TARGET_START."""


class BYOL(Method):
    """Online network (encoder, projector, predictor) and target network (encoder, projector).

    Args:
        encoder: gives features (N, width).
        projector: (N, width) → (N, dim).
        predictor: (N, dim) → (N, dim).
        target_encoder: the target network's; not trained.
        target_projector: the target network's; not trained.
        dim: width of the outputs.
        momentum: τ_base, the target's momentum at the first step; it rises to 1 along half a cosine.
    """

    predictor: nn.Module

    def __init__(
        self,
        encoder: ResNet,
        projector: nn.Module,
        predictor: nn.Module,
        target_encoder: ResNet,
        target_projector: nn.Module,
        dim: int,
        momentum: float,
    ) -> None:
        super().__init__()
        self.encoder, self.projector, self.predictor, self.dim = encoder, projector, predictor, dim
        self.target_encoder = target_encoder.requires_grad_(False)
        self.target_projector = target_projector.requires_grad_(False)
        self.momentum = momentum
        self._total: int | None = None

    def prepare(self, course: Course) -> None:
        """Take the run's length, over which the momentum rises."""
        self._total = course.total

    def forward(self, *views: torch.Tensor) -> Output:
        """L = ‖p1 − z'2‖² + ‖p2 − z'1‖² of vectors at unit length, the mean over the images: 0 … 8."""
        outputs = [self.projector(self.encoder(x)) for x in views]
        predictions = [self.predictor(z) for z in outputs]
        with torch.no_grad():
            targets = [self.target_projector(self.target_encoder(x)) for x in views]
        loss = regression(predictions[0], targets[1]) + regression(predictions[1], targets[0])
        return Output(loss, outputs[0].detach())

    def after_step(self, iteration: int) -> None:
        """ξ ← τξ + (1 − τ)θ, with the θ that the optimiser has just made."""
        assert self._total is not None, "prepare() comes before the first step"
        tau = cosine_momentum(self.momentum, iteration, self._total)
        follow(self.target_encoder, self.encoder, tau)
        follow(self.target_projector, self.projector, tau)


def regression(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The mean squared distance of the rows at unit length, both (N, dim): 2 − 2 cos (equation 2)."""
    return 2 + 2 * negative_cosine(prediction, target)


def keys() -> CfgNode:
    """BYOL's own."""
    node = CfgNode()
    # The target network's momentum at the first step; it rises to 1 at the last along half a cosine.
    node.TARGET_MOMENTUM = 0.996
    # What the target network starts as: random (weights of its own, as the released code has it; its authors saw no
    # significant difference) or online (a copy of the online network).
    node.TARGET_START = "random"
    return node


def check(cfg: CfgNode) -> None:
    """Raise UserError for what BYOL cannot do with."""
    must_be_named(cfg, {"BYOL.TARGET_START": STARTS})
    momentum: Rule = ("BYOL.TARGET_MOMENTUM", lambda v: 0 <= v <= 1, "a momentum (0 … 1)")
    must_hold(cfg, (momentum,))
    if cfg.MODEL.PREDICTOR != "mlp":
        raise UserError(f"MODEL.PREDICTOR is {cfg.MODEL.PREDICTOR!r}; METHOD byol trains one: set it to mlp")


def build(cfg: CfgNode) -> BYOL:
    """BYOL as the MODEL and BYOL keys spell it; online encoder, projector and predictor first, then the target's."""
    model = cfg.MODEL
    encoder, head = _network(model)
    predict = predictor(model.DIM, model.PRED_DIM, model.HEAD_BN, bias=False)
    target = _network(model) if cfg.BYOL.TARGET_START == "random" else (untrained_copy(encoder), untrained_copy(head))
    return BYOL(encoder, head, predict, *target, model.DIM, cfg.BYOL.TARGET_MOMENTUM)


def _network(model: CfgNode) -> tuple[ResNet, nn.Module]:
    """Encoder and projector. The heads end in a layer without bias, as released (byol/utils/networks.py)."""
    encoder, width = build_encoder(model.ARCH, model.ZERO_INIT_RESIDUAL)
    head = projector(
        width, model.PROJ_HIDDEN, model.DIM, model.PROJ_LAYERS, model.HEAD_BN, model.PROJ_BN_AFFINE, bias=False
    )
    return encoder, head
