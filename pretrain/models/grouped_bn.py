"""Batch normalisation over so many images at a time, as on GPUs that hold so many each.

MoCo's released recipe normalises the 32 images of each of eight GPUs; with this, fewer GPUs do the same.
"""

from __future__ import annotations

import torch
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from pretrain.models.layout import memory_format_of
from pretrain.models.replace import ModuleT, replace_batch_norm
from pretrain.models.tracked_bn import TrackedBatchNorm


class GroupedBatchNorm(TrackedBatchNorm):
    """Each group of a batch is normalised with its own statistics in training.

    Of G groups the k-th holds the samples k, k + G, k + 2G, …, which are the share of the k-th of G processes: one
    process with groups computes what G processes compute without. Running statistics follow the mean over the groups of
    what each would have them follow. State and evaluation mode are those of nn.BatchNorm1d/2d.

    Args:
        images: samples a group. A batch of so many, or of fewer, is one group.
    """

    def __init__(
        self, features: int, eps: float, momentum: float | None, affine: bool, track: bool, images: int
    ) -> None:
        super().__init__(features, eps, momentum, affine, track)
        self.images = images

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x of shape (N, C, …).

        Raises:
            ValueError: in training, N is above `images` and no multiple of it.
        """
        if not self.training or len(x) <= self.images:
            return super().forward(x)
        groups, rest = divmod(len(x), self.images)
        if rest:
            raise ValueError(f"{len(x)} samples do not make groups of {self.images}")
        # A group's channels become channels of their own: one call for all groups.
        side_by_side = x.reshape(self.images, groups * x.size(1), *x.shape[2:])
        mean, variance = (torch.zeros(2, groups * x.size(1), dtype=self._statistics_dtype(x), device=x.device)).unbind()
        weight, bias = (None if one is None else one.repeat(groups) for one in (self.weight, self.bias))
        y = batch_norm(side_by_side, mean, variance, weight, bias, training=True, momentum=1.0, eps=self.eps)
        self._track(mean.view(groups, -1).mean(0), variance.view(groups, -1).mean(0))
        return y.view(x.shape).contiguous(memory_format=memory_format_of(x))

    def _statistics_dtype(self, x: torch.Tensor) -> torch.dtype:
        return x.dtype if self.running_mean is None else self.running_mean.dtype


def group_batch_norm(model: ModuleT, images: int) -> ModuleT:
    """Replace every batch normalisation by one over groups of `images` samples, parameters and statistics kept."""

    def grouped(norm: _BatchNorm) -> GroupedBatchNorm:
        return GroupedBatchNorm(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, images
        )

    return replace_batch_norm(model, grouped)
