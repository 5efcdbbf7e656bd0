"""ResNet encoders with torchvision's tensor names, up to the pooled feature; and their backbone tensors."""

from __future__ import annotations

import torch
import torchvision
from torch import nn
from torchvision.models import ResNet

ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet18_cifar")
"""Values of MODEL.ARCH: torchvision's ResNets of basic and bottleneck blocks, and ResNet-18's CIFAR variant."""


def build_encoder(arch: str, zero_init_residual: bool = True) -> tuple[ResNet, int]:
    """A randomly initialized ResNet whose output is the pooled feature (pool5).

    Args:
        arch: one of `ARCHITECTURES`. The CIFAR variant has a 3×3 stem of stride 1 and no max-pool (appendix D).
        zero_init_residual: start each residual block as the identity (last BN's weight 0).

    Returns:
        The encoder and the width of its feature (2048 for a ResNet-50).
    """
    name, _, variant = arch.partition("_")
    encoder: ResNet = getattr(torchvision.models, name)(weights=None, zero_init_residual=zero_init_residual)
    if variant == "cifar":
        encoder.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(encoder.conv1.weight, mode="fan_out", nonlinearity="relu")
        encoder.maxpool = nn.Identity()
    width = encoder.fc.in_features
    encoder.fc = nn.Identity()
    return encoder, width


def backbone_tensors(encoder: ResNet) -> dict[str, torch.Tensor]:
    """The encoder's tensors in a backbone file: torchvision's names, float32, on the CPU, without counters.

    A ResNet-50 has 265: 53 convolutions, and 53 batch normalizations of 4 tensors each.
    """
    return {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in encoder.state_dict().items()
        if not name.endswith("num_batches_tracked") and not name.startswith("fc.")
    }
