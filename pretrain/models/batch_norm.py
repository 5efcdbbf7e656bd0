"""Batch normalization over all processes (torch's on GPUs, our own with gloo on CPUs), or over groups of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_transfer.training.collectives import sum_over_processes

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def memory_format_of(x: torch.Tensor) -> torch.memory_format:
    """torch.channels_last for images (N, C, H, W) in that format, else torch.contiguous_format."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


class TrackedBatchNorm(_BatchNorm):
    """Base class: state and evaluation mode of nn.BatchNorm1d/2d; subclasses implement training."""

    def _check_input_dim(self, x: torch.Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"expected (N, C, …), got {x.dim()} dimension(s)")

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Update the running statistics with a step's mean and unbiased variance, (C,) each."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(variance.to(self.running_var.dtype), weight)


class CPUSyncBatchNorm(TrackedBatchNorm):
    """Batch normalization with training statistics over all processes, from two differentiable all-reduces.

    torch.nn.SyncBatchNorm supports GPUs only. The mean is reduced first, then the squared deviations, because
    E[x²] − E[x]² loses digits; autograd derives the backward pass. The processes' batches may differ in size.
    Half-precision inputs are normalized in float32.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize x of shape (N, C, …) over every dimension but the second."""
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


class GroupedBatchNorm(TrackedBatchNorm):
    """Normalize each group of a batch with its own statistics in training, as GPUs that hold one group each.

    MoCo's released recipe normalizes the 32 images of each of eight GPUs; groups give the same result on fewer GPUs.
    Of G groups the k-th holds the samples k, k + G, k + 2G, …, which are those of the k-th of G processes. The running
    statistics are updated with the groups' mean.

    Args:
        group_size: samples per group. A batch of at most this size is one group.
    """

    def __init__(
        self, features: int, eps: float, momentum: float | None, *, affine: bool, track: bool, group_size: int
    ) -> None:
        super().__init__(features, eps, momentum, affine, track)
        self.group_size = group_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize x of shape (N, C, …).

        Raises:
            ValueError: in training, N is above the group size but not a multiple of it.
        """
        if not self.training or len(x) <= self.group_size:
            return super().forward(x)
        groups, rest = divmod(len(x), self.group_size)
        if rest:
            raise ValueError(f"{len(x)} samples do not make groups of {self.group_size}")
        # The groups become channels: one call normalizes all of them.
        side_by_side = x.reshape(self.group_size, groups * x.size(1), *x.shape[2:])
        mean, variance = (torch.zeros(2, groups * x.size(1), dtype=self._statistics_dtype(x), device=x.device)).unbind()
        weight, bias = (None if one is None else one.repeat(groups) for one in (self.weight, self.bias))
        y = batch_norm(side_by_side, mean, variance, weight, bias, training=True, momentum=1.0, eps=self.eps)
        self._track(mean.view(groups, -1).mean(0), variance.view(groups, -1).mean(0))
        return y.view(x.shape).contiguous(memory_format=memory_format_of(x))

    def _statistics_dtype(self, x: torch.Tensor) -> torch.dtype:
        return x.dtype if self.running_mean is None else self.running_mean.dtype


def convert_sync_batch_norm(model: ModuleT, device: torch.device) -> ModuleT:
    """Replace every batch normalization by one over all processes; parameters and statistics are kept.

    Args:
        model: changed in place.
        device: where the model will run; selects the implementation.
    """
    if device.type == "cuda":
        converted: ModuleT = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted
    return _replace_batch_norm(
        model,
        lambda norm: CPUSyncBatchNorm(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        ),
    )


def convert_grouped_batch_norm(model: ModuleT, group_size: int) -> ModuleT:
    """Replace every batch normalization by one over groups of samples, in place; its tensors are kept."""

    def grouped(norm: _BatchNorm) -> GroupedBatchNorm:
        track = norm.track_running_stats
        return GroupedBatchNorm(
            norm.num_features, norm.eps, norm.momentum, affine=norm.affine, track=track, group_size=group_size
        )

    return _replace_batch_norm(model, grouped)


def _replace_batch_norm(model: ModuleT, make: Callable[[_BatchNorm], _BatchNorm]) -> ModuleT:
    """Replace every batch normalization, in place, by the result of `make`, which gets its tensors and mode."""
    for name, child in model.named_children():
        if isinstance(child, _BatchNorm):
            new = make(child)
            new.weight, new.bias = child.weight, child.bias
            for key, buffer in child.named_buffers():
                setattr(new, key, buffer)
            new.training = child.training
            setattr(model, name, new)
        else:
            _replace_batch_norm(child, make)
    return model
