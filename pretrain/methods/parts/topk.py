"""How often the right class is among the k that a classifier finds likeliest."""

from __future__ import annotations

import torch

TOP5_FROM = 6
"""With fewer classes the top-5 accuracy says nothing and is left out."""


@torch.no_grad()
def hits(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """How many samples have their label among the k highest logits, as `top1` and, with classes enough, `top5`.

    Args:
        logits: (N, classes); N may be 0.
        labels: (N,) int64.

    Returns:
        int64 scalars on the device of `logits`.
    """
    ranks = (1, 5) if logits.shape[1] >= TOP5_FROM else (1,)
    right = logits.topk(max(ranks), dim=1).indices == labels.unsqueeze(1)
    return {f"top{k}": right[:, :k].sum() for k in ranks}
