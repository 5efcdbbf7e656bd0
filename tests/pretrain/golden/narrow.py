"""The narrow model, weights and images behind the golden values: the same for the original code and for ours."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

DIM, PRED_DIM, WIDTH = 32, 8, 64
BATCH, SIDE, STEPS_PER_EPOCH, EPOCHS = 8, 32, 4, 3
BASE_LR, WEIGHT_DECAY, MOMENTUM = 1.6, 1e-4, 0.9


class NarrowResNet(ResNet):
    """torchvision's ResNet with one basic block a stage, an eighth as wide."""

    def __init__(self, num_classes: int, zero_init_residual: bool) -> None:
        super().__init__(BasicBlock, [1, 1, 1, 1], zero_init_residual=zero_init_residual)
        self.fc = nn.Linear(WIDTH, num_classes)

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        return super()._make_layer(block, planes // 8, *args, **kwargs)


def canonical(name: str) -> str:
    """An original tensor's name as ours: its projector is the encoder's fc."""
    return name.replace("encoder.fc.", "projector.")


def fill(model: nn.Module) -> None:
    """Give each convolution and linear layer weights that depend on its (canonical) name alone; norms stay as built."""
    with torch.no_grad():
        for path, module in model.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                for kind, tensor in module.named_parameters(recurse=False):
                    fan_in = tensor[0].numel() if tensor.dim() > 1 else tensor.numel()
                    tensor.copy_(normal(canonical(f"{path}.{kind}"), tuple(tensor.shape)) / fan_in**0.5)


def images(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The two views of a step: the second is the first with noise."""
    shape = (BATCH, 3, SIDE, SIDE)
    first = normal(f"images {step}", shape)
    return first, first + 0.5 * normal(f"noise {step}", shape)


def normal(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Float64 normal numbers from numpy's frozen legacy generator."""
    return torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).normal(size=shape))


def checksums(model: nn.Module) -> dict[str, list[float]]:
    """Sum and norm of each of the model's floating tensors, by canonical name."""
    return {
        canonical(name): [float(tensor.sum()), float(tensor.norm())]
        for name, tensor in sorted(model.state_dict().items())
        if tensor.is_floating_point()
    }
