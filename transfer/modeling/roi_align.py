"""RoIAlign as two small matrix products a RoI: torchvision's numbers up to rounding, on a CPU in far less time.

torchvision's kernel visits each channel of each sampling point, in its backward pass on one thread. But a RoI's points
form a grid, and a bilinear weight is a product of one weight a direction, so a bin's mean is two products: a channel F
(height × width) becomes Wy F Wxᵀ, and a gradient G of that Wyᵀ G Wx. Only the part of F that the RoI covers is read.

Source of the operator: He et al., Mask R-CNN (arXiv 1703.06870), section 3; its rules at borders are torchvision's.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.layers import ROIAlign
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.utils import _pair

from ssl_transfer.training.distributed import one_thread

Region = tuple[int, slice, slice]
"""Index of an image in the batch, and the rows and columns of its feature map that a RoI reads."""


class SeparableROIAlign(ROIAlign):
    """Detectron2's RoIAlign layer, computed by `separable_roi_align` on a CPU.

    On any other device it is torchvision's kernel. Arguments are Detectron2's.
    """

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Pool RoIs.

        Args:
            input: features, (batch, channels, height, width).
            rois: (n, 5): index in the batch, then x0, y0, x1, y1 in units of 1 / `spatial_scale` feature cells.

        Returns:
            (n, channels, *output_size), in `input`'s dtype and memory format.
        """
        if input.device.type != "cpu":
            return super().forward(input, rois)
        rois = rois.to(input.dtype)
        size = _pair(self.output_size)
        return separable_roi_align(input, rois, size, self.spatial_scale, self.sampling_ratio, self.aligned)


def make_separable(model: nn.Module) -> nn.Module:
    """Replace each of a model's RoIAlign layers, which have no tensors, by a `SeparableROIAlign`."""
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if type(layer) is ROIAlign:
                made = SeparableROIAlign(layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned)
                parent.add_module(name, made)
    return model


def separable_roi_align(
    features: Tensor, rois: Tensor, size: tuple[int, int], scale: float, ratio: int, aligned: bool
) -> Tensor:
    """Equal to `torchvision.ops.roi_align` up to rounding; differentiable once, with respect to the features.

    Half precisions are computed in float32, as torchvision does under autocast, and returned in their own dtype.

    Args:
        features: (batch, channels, height, width), float, on the CPU.
        rois: (n, 5), the same dtype: index in the batch, then x0, y0, x1, y1; finite.
        size: bins of a RoI: rows, columns.
        scale: feature cells for one unit of `rois`.
        ratio: sampling points a bin and direction; 0 or less: as many as a bin has cells, rounded up.
        aligned: the centre of a cell lies half a cell from its corner; else the legacy rule.

    Returns:
        (n, channels, *size), in the features' memory format.
    """
    channels_last = features.is_contiguous(memory_format=torch.channels_last)
    computed = torch.float64 if features.dtype is torch.float64 else torch.float32
    corners = rois[:, 1:].detach().to(computed) * scale - (0.5 if aligned else 0.0)
    start, extent = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:
        extent = extent.clamp(min=1)
    along_y = axis_weights(start[:, 1], extent[:, 1], size[0], ratio, features.shape[2])
    along_x = axis_weights(start[:, 0], extent[:, 0], size[1], ratio, features.shape[3])
    regions = list(zip(rois[:, 0].long().tolist(), _spans(along_y), _spans(along_x), strict=True))
    cells = features.to(computed).permute(0, 2, 3, 1)
    pooled = _TwoProducts.apply(cells, along_y, along_x, regions).permute(0, 3, 1, 2).to(features.dtype)
    return pooled if channels_last else pooled.contiguous()


def axis_weights(start: Tensor, extent: Tensor, bins: int, ratio: int, length: int) -> Tensor:
    """The weight of each cell along one direction in each bin: the mean of its sampling points' linear weights.

    A point more than a cell outside counts as 0, one less than a cell outside as the border. The order of operations is
    torchvision's, so that a point is on the same side of a border.

    Args:
        start, extent: (n,), of the RoIs, in cells; an extent may be 0 or negative.
        bins, ratio: of a RoI; as in `separable_roi_align`.
        length: cells along this direction.

    Returns:
        (n, bins, length), the dtype of `start`.
    """
    bin_size = extent / bins
    points = torch.full_like(bin_size, ratio) if ratio > 0 else bin_size.ceil().clamp(min=0)
    bin_size, count = bin_size[:, None, None], points[:, None, None]
    bin_index = torch.arange(bins, dtype=start.dtype)[:, None]
    point = torch.arange(int(points.max()) if len(points) else 0, dtype=start.dtype)
    place = start[:, None, None] + bin_index * bin_size + (point + 0.5) * bin_size / count
    counts = (point < count) & (place >= -1) & (place <= length)
    share = counts / count.clamp(min=1)
    place = torch.where(counts, place, 0).clamp(0, length - 1)
    below = place.floor()
    part = place - below
    weights = start.new_zeros(len(start), bins, length)
    weights.scatter_add_(2, below.long(), (1 - part) * share)
    return weights.scatter_add_(2, (below.long() + 1).clamp(max=length - 1), part * share)


def _spans(weights: Tensor) -> list[slice]:
    """From the first to the last cell with a weight, for each RoI of `weights` (n, bins, length)."""
    used = (weights != 0).any(1)
    cell = torch.arange(weights.shape[2])
    first = torch.where(used, cell, weights.shape[2]).amin(1)
    stop = torch.where(used, cell + 1, 0).amax(1)
    return [slice(min(a, b), b) for a, b in zip(first.tolist(), stop.tolist(), strict=True)]


class _TwoProducts(torch.autograd.Function):
    """Cells (batch, height, width, channels) to pooled (n, bins y, bins x, channels), RoI by RoI.

    RoI by RoI because each has its own extent: nothing outside is read, and memory does not grow with their number. On
    one thread, because the products are so small that threads would wait for one another.
    """

    @staticmethod
    def forward(ctx: Any, cells: Tensor, along_y: Tensor, along_x: Tensor, regions: list[Region]) -> Tensor:
        ctx.save_for_backward(along_y, along_x)
        ctx.regions, ctx.shape = regions, cells.shape
        cells = cells.contiguous()
        channels, high, wide = cells.shape[3], along_y.shape[1], along_x.shape[1]
        pooled = cells.new_empty(len(regions), high, wide, channels)
        with torch.autocast("cpu", enabled=False), one_thread():
            for wy, wx, (image, rows, columns), out in zip(along_y, along_x, regions, pooled, strict=True):
                in_columns = torch.matmul(wx[:, columns], cells[image, rows, columns])
                torch.mm(wy[:, rows], in_columns.reshape(-1, wide * channels), out=out.view(high, wide * channels))
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        along_y, along_x = ctx.saved_tensors
        gradient = gradient.contiguous()
        found = gradient.new_zeros(ctx.shape)
        _, high, wide, channels = gradient.shape
        with torch.autocast("cpu", enabled=False), one_thread():
            for wy, wx, (image, rows, columns), each in zip(along_y, along_x, ctx.regions, gradient, strict=True):
                in_rows = torch.mm(wy[:, rows].t(), each.view(high, wide * channels)).view(-1, wide, channels)
                found[image, rows, columns] += torch.matmul(wx[:, columns].t(), in_rows)
        return found, None, None, None
