"""A detector in channels-last order: the same numbers but for rounding, in less time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def channels_last(model: nn.Module) -> nn.Module:
    """Lay out a C4 detector's weights, and with them its activations, in channels-last order.

    Activations and gradients take the layout of the weights they meet. torchvision's RoI pooling gives the default
    order; its output is put in order once, not by each of the two convolutions that read it, forward and backward. The
    gradient of a region's mean comes in the default order, too. It is put in order for the norm before the mean, whose
    backward pass takes 20 times as long on a CPU where its two inputs differ in order (docs/notes/performance.md).

    On a CPU the RPN's head keeps the default order: the gradient of the 38 MB of weights of its 3 × 3 convolution costs
    twice as much in the other (docs/notes/performance.md).

    Args:
        model: Detectron2's GeneralizedRCNN with a Res5ROIHeads; changed in place. Its tensors keep names and values.
    """
    model.to(memory_format=torch.channels_last)
    res5 = model.get_submodule("roi_heads.res5")
    res5.register_forward_pre_hook(_in(torch.channels_last))
    res5.register_forward_hook(_order_gradient)
    if next(model.parameters()).device.type == "cpu":
        head = model.get_submodule("proposal_generator.rpn_head").to(memory_format=torch.contiguous_format)
        head.get_submodule("conv").register_forward_pre_hook(_in(torch.contiguous_format))
    return model


def _order_gradient(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
    """A hook that puts the gradient of a module's output in channels-last order."""
    if output.requires_grad:
        output.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))


def _in(order: torch.memory_format) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """A hook that puts a module's inputs in this order."""

    def put(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(x.contiguous(memory_format=order) for x in inputs)

    return put
