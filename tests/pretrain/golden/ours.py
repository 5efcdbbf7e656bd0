"""Our SimSiam on the golden values' narrow model."""

from __future__ import annotations

from torch import nn

from pretrain.methods.simsiam import SimSiam
from pretrain.models.heads import predictor, projector
from tests.pretrain.golden import narrow


def narrow_simsiam() -> SimSiam:
    """In float64, with the golden run's initial weights."""
    encoder = narrow.NarrowResNet(narrow.DIM, zero_init_residual=True)
    encoder.fc = nn.Identity()
    heads = projector(narrow.WIDTH, narrow.WIDTH, narrow.DIM), predictor(narrow.DIM, narrow.PRED_DIM)
    method = SimSiam(encoder, *heads, narrow.DIM).double()
    narrow.fill(method)
    return method
