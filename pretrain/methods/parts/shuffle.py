"""Shuffling a batch (MoCo, arXiv 1911.05722, section 3.3, "Shuffling BN").

Where each process normalises its own images, or groups of them, a query and its key are normalised with statistics of
the same images, and the key could be told from them. Keys are therefore computed on a shuffled batch and put back in
order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from pretrain.methods.parts.gather import alone, gathered
from pretrain.models.layout import memory_format_of


@torch.no_grad()
def on_shuffled(network: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The network's outputs for x, computed on the processes' batches shuffled among them; no gradient.

    One process shuffles its own batch, which tells where batch normalisation covers groups of it.

    Args:
        network: gives (N, d).
        x: (N, …) of this process, N the same on all.

    Returns:
        (N, d), in x's order.
    """
    if alone():
        order = torch.randperm(len(x)).to(x.device)
        return network(x[order].contiguous(memory_format=memory_format_of(x)))[torch.argsort(order)]
    order = _random_order(len(x) * dist.get_world_size(), x.device)
    ours = gathered(x)[_share(order)]
    return gathered(network(ours.contiguous(memory_format=memory_format_of(x))))[_share(torch.argsort(order))]


def _random_order(count: int, device: torch.device) -> torch.Tensor:
    """A permutation that the first process draws and the others get: (count,) int64."""
    order = torch.randperm(count).to(device)
    dist.broadcast(order, src=0)
    return order


def _share(rows: torch.Tensor) -> torch.Tensor:
    """This process's part of the rows of all."""
    return rows.view(dist.get_world_size(), -1)[dist.get_rank()]
