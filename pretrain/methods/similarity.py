"""D(p, z): how far a prediction is from its target (section 3 and section 4.5 of arXiv 2011.10566).

Neither stops a gradient: which argument is a constant is the method's business.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pretrain.methods.base import full_precision


def negative_cosine(p: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Minus the mean cosine similarity of the rows of p and z, both (N, d); a scalar in −1 … 1."""
    return -F.cosine_similarity(full_precision(p), full_precision(z), dim=1).mean()


def cross_entropy(p: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """−Σ softmax(z) · log softmax(p) over the channels, averaged over the rows of p and z, both (N, d)."""
    p, z = full_precision(p), full_precision(z)
    return -(F.softmax(z, dim=1) * F.log_softmax(p, dim=1)).sum(1).mean()


SIMILARITIES = {"cosine": negative_cosine, "cross_entropy": cross_entropy}
"""The values of SIMSIAM.SIMILARITY."""
