"""A first-in-first-out queue of keys (MoCo, arXiv 1911.05722, section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pretrain.methods.parts.gather import gathered


class Queue(nn.Module):
    """The last `size` keys; it begins as random directions, as in the released code.

    Both tensors are part of the state dict, and every process holds the same: `keys`, (size, dim) float32, rows of unit
    length; and `pointer`, the row that the next key replaces, the oldest. The pointer stays on the device: nothing
    waits for it.

    Args:
        size: how many keys it holds.
        dim: their width.
    """

    keys: torch.Tensor
    pointer: torch.Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def replace_oldest(self, keys: torch.Tensor) -> None:
        """Put new keys in the places of as many of the oldest: those of all processes, in rank order.

        Args:
            keys: (N, dim) of this process, the same N on all; a multiple of all N together must give `size`.
        """
        new = gathered(keys).to(self.keys.dtype)
        size = len(self.keys)
        rows = (self.pointer + torch.arange(len(new), device=new.device)) % size
        self.keys.index_copy_(0, rows, new)
        self.pointer.copy_((self.pointer + len(new)) % size)
