"""torchvision's ResNet-18 made narrow, so that a pre-training's checkpoint is a few hundred kilobytes."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

STEM, WIDTH = 8, 32


class NarrowResNet(ResNet):
    """One basic block a stage, a sixteenth as wide, with torchvision's tensor names."""

    def __init__(self, weights: None = None, **options: Any) -> None:
        assert weights is None
        super().__init__(BasicBlock, [1, 1, 1, 1], **options)
        self.fc = nn.Linear(WIDTH, 1000)

    @property
    def inplanes(self) -> int:
        return int(self.__dict__["width"])

    @inplanes.setter
    def inplanes(self, value: int) -> None:
        self.__dict__["width"] = STEM if value == 64 else value

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        return super()._make_layer(block, planes // 16, *args, **kwargs)
