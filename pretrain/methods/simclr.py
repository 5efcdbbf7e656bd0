"""SimCLR: a view is told from all others of the batch by being its image's other view (arXiv 2002.05709).

With a third layer in the projector, as the SimSiam paper reproduces it (its appendix C). Its section 6.2 appends
SimSiam's predictor to one branch, stops the gradient of the other, and symmetrises by swapping: both are arguments.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import nn
from torchvision.models import ResNet

from pretrain.methods.base import Method, Output, unit
from pretrain.methods.parts.gather import first_row, with_gradient
from pretrain.models.encoder import build_encoder
from pretrain.models.heads import optional_predictor, projector
from pretrain.rules import Rule, must_be_named, must_hold

REDUCTIONS = {"mean": 2.0, "sum": 1.0}
"""The values of SIMCLR.REDUCTION, and what the sum of the two views' mean losses is divided by."""


class SimCLR(Method):
    """The siamese network: f is encoder and projector; h, the predictor, is the SimSiam paper's addition.

    Both views go through f as one batch, as in the released code: batch normalisation sees them together.

    Args:
        encoder: gives features (N, width).
        projector: the rest of f, (N, width) → (N, d).
        predictor: h, (N, d) → (N, d), on the branch of the anchors; None is the identity.
        dim: d.
        temperature: τ.
        stop_gradient: whether what an anchor is compared with is a constant.
        reduction: one of `REDUCTIONS`: the paper's mean over the 2N views, or the released code's sum of two means.
    """

    def __init__(
        self,
        encoder: ResNet,
        projector: nn.Module,
        predictor: nn.Module | None,
        dim: int,
        temperature: float = 0.1,
        stop_gradient: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.encoder, self.projector, self.predictor = encoder, projector, predictor
        self.dim, self.temperature, self.stop_gradient = dim, temperature, stop_gradient
        self.divisor = REDUCTIONS[reduction]

    def forward(self, *views: torch.Tensor) -> Output:
        """L = ½ Σ over both views of NT-Xent, the other view being the positive."""
        z = self.projector(self.encoder(torch.cat(views)))
        p = z if self.predictor is None else self.predictor(z)
        with torch.autocast(z.device.type, enabled=False):
            a1, a2 = unit(p).chunk(2)
            z1, z2 = (with_gradient(part) for part in unit(z.detach() if self.stop_gradient else z).chunk(2))
            first = first_row(a1)
            loss1, hits1 = nt_xent(a1, z2, z1, self.temperature, first)
            loss2, hits2 = nt_xent(a2, z1, z2, self.temperature, first)
            loss = (loss1 + loss2) / self.divisor
        return Output(loss, z.chunk(2)[0].detach(), {"contrast_accuracy": (hits1 + hits2) / 2})


def nt_xent(
    anchors: torch.Tensor, others: torch.Tensor, own: torch.Tensor, temperature: float, first: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """−log exp(sim(i, j)/τ) / Σ_{k≠i} exp(sim(i, k)/τ), the mean over the anchors i; j is i's other view.

    Args:
        anchors: (n, d), of unit length: one view of this process's images.
        others: (N, d), of unit length: the other view of all processes' images.
        own: (N, d), of unit length: the anchors' view of all processes' images; an anchor is not compared with itself.
        temperature: τ.
        first: which row of `others` and `own` is the first anchor's image.

    Returns:
        The loss, and how often the positive is the most similar of all (0 … 1, no gradient): two scalars.
    """
    positives = torch.arange(first, first + len(anchors), device=anchors.device)
    itself = positives.unsqueeze(1) == torch.arange(len(own), device=anchors.device)
    same_view = (anchors @ own.t()).masked_fill(itself, -torch.inf)
    logits = torch.cat([anchors @ others.t(), same_view], dim=1) / temperature
    hits = (logits.detach().argmax(1) == positives).to(logits.dtype).mean()
    return F.cross_entropy(logits, positives), hits


def keys() -> CfgNode:
    """SimCLR's own keys."""
    node = CfgNode()
    # τ: what similarities are divided by.
    node.TEMPERATURE = 0.1
    # Whether what an anchor is compared with is a constant (the SimSiam paper's section 6.2, with a predictor).
    node.STOP_GRADIENT = False
    # The loss: mean over all views (the paper's equation), or sum of the two views' means (the released code: twice
    # that, which reaches the parameters that LARS does not adapt).
    node.REDUCTION = "mean"
    return node


def check(cfg: CfgNode) -> None:
    """Raise UserError for values of SIMCLR that cannot be."""
    must_be_named(cfg, {"SIMCLR.REDUCTION": tuple(REDUCTIONS)})
    temperature: Rule = ("SIMCLR.TEMPERATURE", lambda v: v > 0, "above 0")
    must_hold(cfg, [temperature])


def build(cfg: CfgNode) -> SimCLR:
    """SimCLR as the MODEL and SIMCLR keys spell it, freshly initialised in this order: encoder, projector, predictor.

    The output BN of the released code has a scale and no offset: with MODEL.PROJ_BN_AFFINE its bias stays 0.
    """
    model, simclr = cfg.MODEL, cfg.SIMCLR
    encoder, width = build_encoder(model.ARCH, model.ZERO_INIT_RESIDUAL)
    head = projector(width, model.PROJ_HIDDEN, model.DIM, model.PROJ_LAYERS, model.HEAD_BN, model.PROJ_BN_AFFINE)
    if model.PROJ_BN_AFFINE:
        head[-1].bias.requires_grad_(False)
    predictor = optional_predictor(model.PREDICTOR, model.DIM, model.PRED_DIM, model.HEAD_BN)
    return SimCLR(encoder, head, predictor, model.DIM, simclr.TEMPERATURE, simclr.STOP_GRADIENT, simclr.REDUCTION)
