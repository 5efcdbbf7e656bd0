"""Encoders and heads against what the released code builds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pretrain.models.encoder import ARCHITECTURES, backbone_tensors, build_encoder
from pretrain.models.heads import build_predictor, build_projector


def test_projector_equals_the_released_code() -> None:
    layers = list(build_projector(20, 20, 12))
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]
    assert [type(layer) for layer in layers] == kinds
    assert layers[0].bias is None and layers[3].bias is None
    assert layers[6].bias is not None and not layers[6].bias.requires_grad and layers[6].weight.requires_grad
    assert layers[1].affine and layers[4].affine and not layers[7].affine
    assert (layers[6].in_features, layers[6].out_features) == (20, 12)


def test_cifar_projector_has_two_layers() -> None:
    layers = [layer for layer in build_projector(512, 2048, 2048, layers=2) if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(512, 2048), (2048, 2048)]


def test_predictor_is_a_bottleneck_with_bn_on_the_hidden_layer_only() -> None:
    layers = list(build_predictor(12, 3))
    assert [type(layer) for layer in layers] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert layers[0].bias is None and layers[3].bias is not None and layers[3].bias.requires_grad
    assert (layers[0].out_features, layers[3].out_features) == (3, 12)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_encoders_return_pooled_features(arch: str) -> None:
    with torch.device("meta"):
        encoder, width = build_encoder(arch)
        assert encoder(torch.empty(2, 3, 32, 32)).shape == (2, width)
    assert width == (512 if arch.startswith(("resnet18", "resnet34")) else 2048)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())
    convolutions = sum(isinstance(module, nn.Conv2d) for module in encoder.modules())
    assert len([n for n in encoder.state_dict() if not n.endswith("tracked")]) == convolutions + 4 * norms


def test_zero_init_makes_each_block_an_identity_at_the_start() -> None:
    for zero in (True, False):
        encoder, _ = build_encoder("resnet50", zero_init_residual=zero)
        blocks = [block for stage in (encoder.layer1, encoder.layer4) for block in stage]
        assert all(bool((block.bn3.weight == 0).all()) == zero for block in blocks)


def test_cifar_stem_keeps_the_resolution() -> None:
    encoder, _ = build_encoder("resnet18_cifar")
    stem = encoder.maxpool(encoder.relu(encoder.bn1(encoder.conv1(torch.zeros(1, 3, 32, 32)))))
    assert stem.shape == (1, 64, 32, 32)
    assert backbone_tensors(encoder)["conv1.weight"].shape == (64, 3, 3, 3)
