"""SimCLR: contrast a view of an image with the image's other view and all other views (arXiv 2002.05709).

The projector has a third layer, as in the SimSiam paper's reproduction (its appendix C). Its section 6.2 adds SimSiam's
predictor to one branch, stops the gradient of the other, and symmetrizes by swapping: both are arguments.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import nn
from torchvision.models import ResNet

from pretrain.methods.base import Method, MethodOutput, l2_normalize, section_arguments
from pretrain.models.heads import build_encoder_and_projector, build_optional_predictor
from pretrain.rules import Rule, check_choices, check_rules
from ssl_transfer.training.collectives import all_gather_with_grad, rank_offset

REDUCTIONS = {"mean": 2.0, "sum": 1.0}
"""Values of SIMCLR.REDUCTION, and the divisor of the sum of the two views' mean losses."""


class SimCLR(Method):
    """Siamese network: f is encoder and projector; h, the predictor, is an addition of the SimSiam paper.

    Both views pass through f as one batch, as in the released code: batch normalization covers both.

    Args:
        encoder: maps images to features (N, width).
        projector: the rest of f, (N, width) → (N, d).
        predictor: h, (N, d) → (N, d), on the anchors' branch; None for the identity.
        dim: d.
        temperature: τ.
        stop_gradient: whether gradients stop at the outputs that anchors are compared with.
        reduction: one of `REDUCTIONS`: the paper's mean over the 2N views, or the released code's sum of two means.
    """

    def __init__(
        self,
        encoder: ResNet,
        projector: nn.Module,
        predictor: nn.Module | None,
        dim: int,
        *,
        temperature: float = 0.1,
        stop_gradient: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.encoder, self.projector, self.predictor = encoder, projector, predictor
        self.dim, self.temperature, self.stop_gradient = dim, temperature, stop_gradient
        self.divisor = REDUCTIONS[reduction]

    def forward(self, *views: torch.Tensor) -> MethodOutput:
        """L = ½ Σ over both views of NT-Xent, with the other view as the positive."""
        z = self.projector(self.encoder(torch.cat(views)))
        p = z if self.predictor is None else self.predictor(z)
        with torch.autocast(z.device.type, enabled=False):
            a1, a2 = l2_normalize(p).chunk(2)
            normalized = l2_normalize(z.detach() if self.stop_gradient else z)
            z1, z2 = (all_gather_with_grad(part) for part in normalized.chunk(2))
            offset = rank_offset(a1)
            loss1, accuracy1 = nt_xent(a1, z2, z1, self.temperature, offset)
            loss2, accuracy2 = nt_xent(a2, z1, z2, self.temperature, offset)
            loss = (loss1 + loss2) / self.divisor
        return MethodOutput(loss, z.chunk(2)[0].detach(), {"contrast_accuracy": (accuracy1 + accuracy2) / 2})


def nt_xent(
    anchors: torch.Tensor, others: torch.Tensor, own: torch.Tensor, temperature: float, offset: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """−log exp(sim(i, j)/τ) / Σ_{k≠i} exp(sim(i, k)/τ), averaged over the anchors i; j is the other view of i.

    Args:
        anchors: (n, d) unit vectors: one view of this process's images.
        others: (N, d) unit vectors: the other view of all processes' images.
        own: (N, d) unit vectors: the anchors' view of all processes' images; an anchor is not compared with itself.
        temperature: τ.
        offset: the row of `others` and `own` that holds the first anchor's image.

    Returns:
        Two scalars: the loss, and how often the positive has the highest similarity (0 … 1, no gradient).
    """
    positives = torch.arange(offset, offset + len(anchors), device=anchors.device)
    itself = positives.unsqueeze(1) == torch.arange(len(own), device=anchors.device)
    same_view = (anchors @ own.t()).masked_fill(itself, -torch.inf)
    logits = torch.cat([anchors @ others.t(), same_view], dim=1) / temperature
    accuracy = (logits.detach().argmax(1) == positives).to(logits.dtype).mean()
    return F.cross_entropy(logits, positives), accuracy


def keys() -> CfgNode:
    """SimCLR's config section."""
    node = CfgNode()
    # τ: the divisor of similarities.
    node.TEMPERATURE = 0.1
    # Whether gradients stop at the outputs that anchors are compared with (the SimSiam paper's section 6.2, with a
    # predictor).
    node.STOP_GRADIENT = False
    # The loss: mean over all views (the paper's equation), or sum of the two views' means (the released code: twice the
    # mean, which makes a difference for the parameters that LARS does not scale).
    node.REDUCTION = "mean"
    return node


def check(cfg: CfgNode) -> None:
    """Raise UserError for values that SimCLR does not support."""
    check_choices(cfg, {"SIMCLR.REDUCTION": tuple(REDUCTIONS)})
    temperature: Rule = ("SIMCLR.TEMPERATURE", lambda v: v > 0, "above 0")
    check_rules(cfg, [temperature])


def build(cfg: CfgNode) -> SimCLR:
    """SimCLR from the MODEL and SIMCLR keys, initialized in the order encoder, projector, predictor.

    The output BN of the released code has a scale but no offset: with MODEL.PROJ_BN_AFFINE its bias stays 0.
    """
    encoder, projector = build_encoder_and_projector(cfg.MODEL)
    if cfg.MODEL.PROJ_BN_AFFINE:
        projector[-1].bias.requires_grad_(False)
    predictor = build_optional_predictor(cfg.MODEL)
    return SimCLR(encoder, projector, predictor, cfg.MODEL.DIM, **section_arguments(cfg.SIMCLR))
