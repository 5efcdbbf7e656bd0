"""Benchmark of the separable RoIAlign against torchvision's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from detectron2.layers import ROIAlign
from torch import Tensor

from benchmarks.paired import PairedBenchmark
from transfer.modeling.roi_align import SeparableROIAlign

LIMIT = 1e-4
"""Largest difference of pooled values and gradients relative to the largest value: float32 sums in another order."""

BINS, STRIDE = 14, 16
"""Bins of an RoI and stride of the features in a C4 detector."""


def benchmarks() -> Iterator[PairedBenchmark]:
    """The size of a training step on images of 800 × 1344 with a quarter of its RoIs."""
    yield roi_align(height=50, width=84, rois=128)


def roi_align(height: int, width: int, rois: int, images: int = 2, channels: int = 1024) -> PairedBenchmark:
    """Time pooling and its backward pass.

    Each has the memory format it has in a detector: ours channels-last, the peer's contiguous.

    Args:
        height, width: of the features.
        rois: RoIs per image; each is 3 to 53 % of the features' height and width.
        images, channels: of the features.
    """

    @functools.cache
    def passes() -> tuple[Callable[[], tuple[Tensor, Tensor]], ...]:
        torch.manual_seed(0)
        whole = torch.tensor([width, height]) * STRIDE
        first = torch.rand(images * rois, 2) * 0.7
        far = (first + 0.03 + torch.rand(images * rois, 2) * 0.5).clamp(max=1)
        image = torch.arange(images).repeat_interleave(rois)[:, None]
        boxes = torch.cat([image, first * whole, far * whole], 1)
        features = torch.randn(images, channels, height, width)
        gradient = torch.randn(images * rois, channels, BINS, BINS)

        def both(layer: type[ROIAlign], order: torch.memory_format) -> Callable[[], tuple[Tensor, Tensor]]:
            pool = layer((BINS, BINS), 1 / STRIDE, 0, True)
            leaf, weight = (x.contiguous(memory_format=order) for x in (features, gradient))
            leaf.requires_grad_()

            def run() -> tuple[Tensor, Tensor]:
                pooled = pool(leaf, boxes)
                (found,) = torch.autograd.grad(pooled, leaf, weight)
                return pooled.detach(), found

            return run

        return both(SeparableROIAlign, torch.channels_last), both(ROIAlign, torch.contiguous_format)

    def equal() -> str:
        gap = 0.0
        for mine, its in zip(*(run() for run in passes()), strict=True):
            gap = max(gap, float((mine - its).abs().max() / its.abs().max()))
        assert gap <= LIMIT, f"values or gradients differ by {gap:.2g} of the largest"
        return f"values and gradients: max |Δ| {gap:.0e} of the largest"

    what = f"RoIAlign and its gradient, {images} images' features {channels}×{height}×{width}, {rois} RoIs each"
    peer = "torchvision's RoIAlign"
    return PairedBenchmark(what, peer, lambda: passes()[0](), lambda: passes()[1](), equal, images * rois, "RoIs")
