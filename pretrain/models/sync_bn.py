"""Batch normalisation over the samples of all processes: torch's on GPUs, one of our own over gloo on CPUs."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.training.collectives import sum_over_processes
from pretrain.models.replace import ModuleT, replace_batch_norm
from pretrain.models.tracked_bn import TrackedBatchNorm


class CPUSyncBatchNorm(TrackedBatchNorm):
    """Batch normalisation whose training statistics cover all processes, written with two differentiable sums.

    torch.nn.SyncBatchNorm has kernels for GPUs alone. The mean is summed first, then the squares of what remains, as
    E[x²] − E[x]² would lose digits; autograd does the rest. State and evaluation mode are those of nn.BatchNorm1d/2d.
    The processes' batches may differ in size. Half-precision inputs are normalised in float32.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x of shape (N, C, …) over every dimension but the second."""
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        full = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        dims = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        size = torch.tensor([x.numel() / x.size(1)], dtype=full.dtype)
        sums = sum_over_processes(torch.cat([full.sum(dims), size]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = full - mean.view(shape)
        variance = sum_over_processes(centred.square().sum(dims)) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1))
        y = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)


def synchronise_batch_norm(model: ModuleT, device: torch.device) -> ModuleT:
    """Replace every batch normalisation by one over all processes, parameters and statistics kept.

    Args:
        model: changed in place where a child is replaced.
        device: where it will run; decides which implementation.
    """
    if device.type == "cuda":
        converted: ModuleT = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted
    return replace_batch_norm(model, _on_cpu)


def _on_cpu(norm: _BatchNorm) -> CPUSyncBatchNorm:
    return CPUSyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
