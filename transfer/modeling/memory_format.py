"""A detector in channels-last memory format: the same numbers up to rounding, in less time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

InputHook = Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]


def channels_last(model: nn.Module) -> nn.Module:
    """Convert a detector's weights, and with them its activations, to channels-last memory format.

    Activations and gradients take the memory format of the weights. torchvision's RoI pooling returns the default
    format; its output is converted once, not by each of the two convolutions that read it, forward and backward. The
    gradient of a region's mean has the default format, too. It is converted for the norm before the mean, whose
    backward pass takes 20 times as long on a CPU where its two inputs differ in format (docs/notes/performance.md).

    On a CPU the RPN's head keeps the default format: the gradient of the 38 MB of weights of its 3 × 3 convolution
    takes twice as long in the other (docs/notes/performance.md).

    Args:
        model: Detectron2's GeneralizedRCNN; changed in place. Names and values of its tensors stay. The hooks are for
            a Res5ROIHeads (C4) alone: an FPN's heads are small.
    """
    model.to(memory_format=torch.channels_last)
    if not any(name == "roi_heads.res5" for name, _ in model.named_modules()):
        return model
    res5 = model.get_submodule("roi_heads.res5")
    res5.register_forward_pre_hook(_convert_inputs(torch.channels_last))
    res5.register_forward_hook(_convert_gradient)
    if next(model.parameters()).device.type == "cpu":
        head = model.get_submodule("proposal_generator.rpn_head").to(memory_format=torch.contiguous_format)
        head.get_submodule("conv").register_forward_pre_hook(_convert_inputs(torch.contiguous_format))
    return model


def _convert_gradient(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
    """A hook that converts the gradient of a module's output to channels-last."""
    if output.requires_grad:
        output.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))


def _convert_inputs(memory_format: torch.memory_format) -> InputHook:
    """A hook that converts a module's inputs to this memory format."""

    def convert(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(x.contiguous(memory_format=memory_format) for x in inputs)

    return convert
