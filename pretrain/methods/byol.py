"""BYOL: predict the output of a target network, an exponential moving average (arXiv 2006.07733, section 3)."""

from __future__ import annotations

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torchvision.models import ResNet

from pretrain.methods.base import Method, MethodOutput, TrainingInfo
from pretrain.methods.parts.losses import negative_cosine
from pretrain.methods.parts.momentum import momentum_copy, update_ema
from pretrain.models.heads import build_encoder_and_projector, build_predictor
from pretrain.optim.schedule import cosine_momentum
from pretrain.rules import Rule, check_choices, check_rules
from ssl_transfer.errors import UserError

STARTS = ("random", "online")
"""Values of BYOL.TARGET_START."""


class BYOL(Method):
    """Online network (encoder, projector, predictor) and target network (encoder, projector).

    Args:
        encoder: maps images to features (N, width).
        projector: (N, width) → (N, dim).
        predictor: (N, dim) → (N, dim).
        target_encoder: the target network's encoder; not trained.
        target_projector: the target network's projector; not trained.
        dim: width of the outputs.
        target_momentum: τ_base, the target's momentum at the first step; it rises to 1 along half a cosine.
    """

    predictor: nn.Module

    def __init__(
        self,
        *,
        encoder: ResNet,
        projector: nn.Module,
        predictor: nn.Module,
        target_encoder: ResNet,
        target_projector: nn.Module,
        dim: int,
        target_momentum: float,
    ) -> None:
        super().__init__()
        self.encoder, self.projector, self.predictor, self.dim = encoder, projector, predictor, dim
        self.target_encoder = target_encoder.requires_grad_(False)
        self.target_projector = target_projector.requires_grad_(False)
        self.target_momentum = target_momentum
        self._total_steps: int | None = None

    def prepare(self, info: TrainingInfo) -> None:
        """Store the length of the run, over which the momentum rises."""
        self._total_steps = info.total_steps

    def forward(self, *views: torch.Tensor) -> MethodOutput:
        """L = ‖p1 − z'2‖² + ‖p2 − z'1‖² of unit vectors, averaged over the images: 0 … 8."""
        outputs = [self.projector(self.encoder(x)) for x in views]
        predictions = [self.predictor(z) for z in outputs]
        with torch.no_grad():
            targets = [self.target_projector(self.target_encoder(x)) for x in views]
        loss = regression_loss(predictions[0], targets[1]) + regression_loss(predictions[1], targets[0])
        return MethodOutput(loss, outputs[0].detach())

    def after_step(self, iteration: int) -> None:
        """ξ ← τξ + (1 − τ)θ, with the updated θ."""
        assert self._total_steps is not None, "prepare() must be called before the first step"
        tau = cosine_momentum(self.target_momentum, iteration, self._total_steps)
        update_ema(self.target_encoder, self.encoder, tau)
        update_ema(self.target_projector, self.projector, tau)


def regression_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of the normalized rows, both (N, dim): 2 − 2 cos (equation 2)."""
    return 2 + 2 * negative_cosine(prediction, target)


def keys() -> CfgNode:
    """BYOL's config section."""
    node = CfgNode()
    # The target network's momentum at the first step; it rises to 1 at the last along half a cosine.
    node.TARGET_MOMENTUM = 0.996
    # Initial target network: random (weights of its own, as in the released code; its authors report no significant
    # difference) or online (a copy of the online network).
    node.TARGET_START = "random"
    return node


def check(cfg: CfgNode) -> None:
    """Raise UserError for values that BYOL does not support."""
    check_choices(cfg, {"BYOL.TARGET_START": STARTS})
    momentum: Rule = ("BYOL.TARGET_MOMENTUM", lambda v: 0 <= v <= 1, "a momentum (0 … 1)")
    check_rules(cfg, (momentum,))
    if cfg.MODEL.PREDICTOR != "mlp":
        raise UserError(f"MODEL.PREDICTOR is {cfg.MODEL.PREDICTOR!r}; METHOD byol trains one: set it to mlp")


def build(cfg: CfgNode) -> BYOL:
    """BYOL from the MODEL and BYOL keys, initialized in the order online network, target network.

    The heads' output layers have no bias, as in the released code (byol/utils/networks.py).
    """
    model = cfg.MODEL
    encoder, projector = build_encoder_and_projector(model, bias=False)
    predictor = build_predictor(model.DIM, model.PRED_DIM, model.HEAD_BN, bias=False)
    if cfg.BYOL.TARGET_START == "random":
        target_encoder, target_projector = build_encoder_and_projector(model, bias=False)
    else:
        target_encoder, target_projector = momentum_copy(encoder), momentum_copy(projector)
    return BYOL(
        encoder=encoder,
        projector=projector,
        predictor=predictor,
        target_encoder=target_encoder,
        target_projector=target_projector,
        dim=model.DIM,
        target_momentum=cfg.BYOL.TARGET_MOMENTUM,
    )
