"""What the weights compute where they come from: torchvision's ResNet on a fixed image, each stage's features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from transfer.weights.canonical import Backbone, Preprocessing

STAGES = ("stem", "res2", "res3", "res4", "res5")
HEIGHT, WIDTH = 128, 160


def fixed_image() -> torch.Tensor:
    """The image of the proof: (3, 128, 160), uint8, RGB; smooth waves with noise, no two channels alike."""
    rows = torch.arange(HEIGHT, dtype=torch.float64)[:, None] / HEIGHT
    columns = torch.arange(WIDTH, dtype=torch.float64)[None, :] / WIDTH
    noise = torch.randint(0, 64, (3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(0))
    waves = torch.stack([torch.sin(6.28 * (k * rows + (4 - k) * columns)) * 60 + 40 * k + 30 for k in (1.0, 2.0, 3.0)])
    return (waves + noise).clamp(0, 255).to(torch.uint8)


def normalised(image: torch.Tensor, block: Preprocessing) -> torch.Tensor:
    """An RGB uint8 image as a batch of one, float32, as the net was trained to see it."""
    channels = image if block.channel_order == "RGB" else image.flip(0)
    mean, std = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (block.mean, block.std))
    return ((channels.to(torch.float32) - mean) / std)[None]


def features(backbone: Backbone) -> dict[str, torch.Tensor]:
    """Features of the source weights on the fixed image, by torchvision's own ResNet.

    For Caffe's weights (`stride_in_1x1`) the net is built with each stage's stride on the first 1×1 convolution.

    Returns:
        stage → (1, channels, height, width), float32; `stem` is after the max-pool.
    """
    return forward(backbone.arch, backbone.tensors, backbone.preprocessing)


def forward(arch: str, tensors: Mapping[str, torch.Tensor], block: Preprocessing) -> dict[str, torch.Tensor]:
    """`features` of bare tensors (torchvision's names)."""
    net = network(arch, tensors, block.stride_in_1x1)
    with torch.no_grad():
        x = net.maxpool(net.relu(net.bn1(net.conv1(normalised(fixed_image(), block)))))
        found = {"stem": x}
        for stage, layer in zip(STAGES[1:], (net.layer1, net.layer2, net.layer3, net.layer4), strict=True):
            x = found[stage] = layer(x)
    return found


def network(arch: str, tensors: Mapping[str, torch.Tensor], stride_in_1x1: bool = False) -> Any:
    """torchvision's ResNet over the given tensors themselves (no copy), in eval mode, without its classifier."""
    import torchvision

    with torch.device("meta"):
        net = getattr(torchvision.models, arch)(weights=None)
    net.fc = torch.nn.Identity()
    counters = {k: torch.tensor(0) for k in net.state_dict() if k.endswith("num_batches_tracked")}
    net.load_state_dict({**tensors, **counters}, strict=True, assign=True)
    if stride_in_1x1:
        for layer in (net.layer2, net.layer3, net.layer4):
            layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    return net.eval().requires_grad_(False)
