"""Similarities, Sinkhorn-Knopp and top-k accuracy. None of them stops a gradient; that is up to the method.

Each is a function of tensors. SimSiam's symmetrized loss, from two views' projections z and predictions p, all (N, d):

    loss = (negative_cosine(p1, z2.detach()) + negative_cosine(p2, z1.detach())) / 2
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F

from pretrain.methods.base import full_precision
from ssl_transfer.training.collectives import is_distributed, sum_over_processes

MIN_CLASSES_TOP5 = 6
"""With fewer classes the top-5 accuracy is meaningless and omitted."""


def negative_cosine(p: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """SimSiam's D(p, z): minus the mean cosine similarity of the rows of p and z, both (N, d); a scalar in −1 … 1."""
    return -F.cosine_similarity(full_precision(p), full_precision(z), dim=1).mean()


def cross_entropy(p: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """D(p, z) of SimSiam's section 4.5: −Σ softmax(z) · log softmax(p) over channels, averaged over the rows."""
    p, z = full_precision(p), full_precision(z)
    return -(F.softmax(z, dim=1) * F.log_softmax(p, dim=1)).sum(1).mean()


SIMILARITIES = {"cosine": negative_cosine, "cross_entropy": cross_entropy}
"""Values of SIMSIAM.SIMILARITY."""


def sinkhorn(scores: torch.Tensor, epsilon: float, steps: int) -> torch.Tensor:
    """Soft assignments of the samples of all processes to prototypes that use all prototypes equally.

    SwAV (arXiv 2006.09882, section 3.1 and appendix A), after Cuturi (2013): the columns (prototypes) and rows
    (samples) of exp(scores / ε) are scaled in turn to equal sums. The released code also divides by the sum of all
    entries, by K and by N; factors common to a row or to all entries cancel in the last division, by the rows' sums.
    This function works with logarithms, so nothing overflows and no prototype's sum is 0, whatever ε.

    Args:
        scores: (N, K) cosines of this process's samples with the prototypes; half precision is computed in float32.
            N may differ between processes.
        epsilon: ε, the weight of the entropy; towards 0 the codes become one-hot.
        steps: number of scaling steps, 1 or more.

    Returns:
        (N, K), each row a distribution. Differentiable, also through the other processes.
    """
    log_q = full_precision(scores) / epsilon
    for _ in range(steps):
        log_q = log_q - _log_column_sums(log_q)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    return log_q.exp()


def _log_column_sums(log_q: torch.Tensor) -> torch.Tensor:
    """(1, K): logarithm of each prototype's sum over the samples of all processes."""
    local = log_q.logsumexp(0, keepdim=True)
    if not is_distributed():
        return local
    highest = local.detach().clone()
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    return highest + sum_over_processes((local - highest).exp()).log()


@torch.no_grad()
def topk_correct(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Count the samples whose label is among the k highest logits, as `top1` and, with enough classes, `top5`.

    Args:
        logits: (N, classes); N may be 0.
        labels: (N,) int64.

    Returns:
        int64 scalars on the device of `logits`.
    """
    ranks = (1, 5) if logits.shape[1] >= MIN_CLASSES_TOP5 else (1,)
    correct = logits.topk(max(ranks), dim=1).indices == labels.unsqueeze(1)
    return {f"top{k}": correct[:, :k].sum() for k in ranks}
