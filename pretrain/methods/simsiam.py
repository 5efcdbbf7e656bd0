"""SimSiam: two views, one network, a predictor and a stop-gradient (arXiv 2011.10566, section 3 and algorithm 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import nn
from torchvision.models import ResNet

from pretrain.methods.base import Method, Output, full_precision
from pretrain.models.encoder import build_encoder
from pretrain.models.heads import predictor, projector


def negative_cosine(p: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """D(p, stopgrad(z)): minus the mean cosine similarity of p and z, both (N, d); z is a constant."""
    return -F.cosine_similarity(full_precision(p), full_precision(z.detach()), dim=1).mean()


class SimSiam(Method):
    """The siamese network: f is encoder and projector, h the predictor.

    Args:
        encoder: gives features (N, width).
        projector: the rest of f, (N, width) → (N, d).
        predictor: h, (N, d) → (N, d).
        dim: d.
    """

    predictor: nn.Module

    def __init__(self, encoder: ResNet, projector: nn.Module, predictor: nn.Module, dim: int) -> None:
        super().__init__()
        self.encoder, self.projector, self.predictor = encoder, projector, predictor
        self.dim = dim

    def forward(self, x1: torch.Tensor, x2: torch.Tensor) -> Output:
        """L = ½ D(p1, stopgrad(z2)) + ½ D(p2, stopgrad(z1))."""
        z1, z2 = self.projector(self.encoder(x1)), self.projector(self.encoder(x2))
        p1, p2 = self.predictor(z1), self.predictor(z2)
        loss = negative_cosine(p1, z2) / 2 + negative_cosine(p2, z1) / 2
        return Output(loss, z1.detach())


def build(cfg: CfgNode) -> SimSiam:
    """SimSiam as the MODEL keys spell it."""
    model = cfg.MODEL
    encoder, width = build_encoder(model.ARCH, model.ZERO_INIT_RESIDUAL)
    return SimSiam(
        encoder,
        projector(width, model.PROJ_HIDDEN, model.DIM, model.PROJ_LAYERS),
        predictor(model.DIM, model.PRED_DIM),
        model.DIM,
    )
