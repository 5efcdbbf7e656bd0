"""How pixels become the network's input: torchvision's convention, which travels with the weights."""

from __future__ import annotations

from typing import Any

import torch

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's per-channel mean and standard deviation, RGB, on the 0…1 scale."""


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 RGB images (N, 3, H, W) to float32, scaled to 0…1, minus `MEAN`, over `STD`; on the images' device."""
    # In place: fresh memory took most of the time on a CPU. The constants' copies do not wait for the device.
    mean, std = (torch.tensor(one).view(1, 3, 1, 1).to(images.device, non_blocking=True) for one in (MEAN, STD))
    return images.div(255).sub_(mean).div_(std)


def block() -> dict[str, Any]:
    """The preprocessing block that is written with the weights (0…255 scale, see docs/reference/formats.md)."""
    return {
        "channel_order": "RGB",
        "mean": [round(255 * value, 3) for value in MEAN],
        "std": [round(255 * value, 3) for value in STD],
        "stride_in_1x1": False,
    }
