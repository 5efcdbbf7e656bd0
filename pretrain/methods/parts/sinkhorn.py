"""Sinkhorn-Knopp over all processes: soft assignments of samples to prototypes that fill all prototypes equally.

SwAV (arXiv 2006.09882, section 3.1 and appendix A), after Cuturi (2013).
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from common.training.collectives import sum_over_processes
from pretrain.methods.base import full_precision


def sinkhorn(scores: torch.Tensor, epsilon: float, steps: int) -> torch.Tensor:
    """Codes Q: exp(scores / ε), whose columns (prototypes) and rows (samples) are scaled in turn to equal sums.

    The released code divides Q itself, once by the sum of all entries and then by K, N and the sums; all that is the
    same for a whole row or for all entries cancels in the next division by the rows' sums, which comes last. Here the
    logarithm of Q is kept, where nothing overflows and no prototype's sum is 0, whatever ε.

    Args:
        scores: (N, K) cosines of this process's samples with the prototypes; half precision is computed in float32.
            The processes may have different N.
        epsilon: ε, the strength of the entropy's term; towards 0 the codes become one-hot.
        steps: how many times prototypes and samples are scaled, 1 or more.

    Returns:
        (N, K), each row a distribution. Differentiable, over the processes too: whether targets are constants is the
        method's business.
    """
    log_q = full_precision(scores) / epsilon
    for _ in range(steps):
        log_q = log_q - _log_sum_of_all_samples(log_q)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    return log_q.exp()


def _log_sum_of_all_samples(log_q: torch.Tensor) -> torch.Tensor:
    """(1, K): the logarithm of each prototype's sum over the samples of all processes."""
    ours = log_q.logsumexp(0, keepdim=True)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return ours
    highest = ours.detach().clone()
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    return highest + sum_over_processes((ours - highest).exp()).log()
