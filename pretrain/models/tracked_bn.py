"""What batch normalisations of our own share: their running statistics, and inputs of any number of dimensions."""

from __future__ import annotations

import torch
from torch.nn.modules.batchnorm import _BatchNorm


class TrackedBatchNorm(_BatchNorm):
    """State and evaluation mode are those of nn.BatchNorm1d/2d; a subclass says what happens in training."""

    def _check_input_dim(self, x: torch.Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"expected (N, C, …), got {x.dim()} dimension(s)")

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Let the running statistics follow a step's mean and unbiased variance, (C,) each."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(variance.to(self.running_var.dtype), weight)
