"""Projection and prediction MLPs of the released SimSiam (simsiam/builder.py; arXiv 2011.10566, section 3, Table 3).

With the sizes of the paper's ResNet-50:

    encoder, width = build_encoder("resnet50")  # pretrain.models.encoder
    projector, predictor = build_projector(width, 2048, 2048), build_predictor(2048, 512)
    p = predictor(projector(encoder(images)))  # (N, 3, 224, 224) → (N, 2048)
"""

from __future__ import annotations

from fvcore.common.config import CfgNode
from torch import nn
from torchvision.models import ResNet

from pretrain.models.encoder import build_encoder

HEAD_BNS = ("none", "hidden", "default", "all")
"""Values of MODEL.HEAD_BN: which layers of the two heads have batch normalization (Table 3 of arXiv 2011.10566)."""

PREDICTORS = ("mlp", "none", "fixed")
"""Values of MODEL.PREDICTOR: trained, none (the identity), or fixed at its random initialization (Table 1)."""


def build_projector(
    width: int,
    hidden: int,
    dim: int,
    *,
    layers: int = 3,
    norm: str = "default",
    affine: bool = False,
    bias: bool = True,
) -> nn.Sequential:
    """The projection MLP: BN after each layer, ReLU after each but the last.

    The output BN of the released code has no affine parameters. It cancels the bias of the last layer, which stays at
    its initial value (`requires_grad` False). A layer without BN has a trained bias.

    Args:
        width: width of the encoder's feature.
        hidden: width of the hidden layers.
        dim: width of the output, d in the paper.
        layers: number of fully connected layers (3; 2 on CIFAR-10).
        norm: one of `HEAD_BNS`: BN on no layer, on the hidden layers, or on all (`default` and `all`).
        affine: whether the output BN has trained scale and offset (section 4.4 compares both).
        bias: whether the output layer has a bias (BYOL's has none).
    """
    modules: list[nn.Module] = []
    for _ in range(layers - 1):
        modules += _hidden(width, hidden, norm != "none")
        width = hidden
    return nn.Sequential(*modules, *_output(width, dim, norm in ("default", "all"), affine, bias))


def build_predictor(dim: int, hidden: int, norm: str = "default", bias: bool = True) -> nn.Sequential:
    """The prediction MLP, a bottleneck d → hidden → d with ReLU and, by default, BN on the hidden layer only.

    Args:
        dim: d.
        hidden: width of the hidden layer.
        norm: one of `HEAD_BNS`; `all` adds a BN to the output. (Inferred, as the released code has none: this BN is
            affine, and the bias of the layer before it is frozen, as in the projector.)
        bias: whether the output layer has a bias (BYOL's has none).
    """
    return nn.Sequential(*_hidden(dim, hidden, norm != "none"), *_output(hidden, dim, norm == "all", True, bias))


def build_encoder_and_projector(model: CfgNode, bias: bool = True) -> tuple[ResNet, nn.Sequential]:
    """Encoder and projector from the MODEL keys, initialized in this order.

    Args:
        model: the config's MODEL section.
        bias: whether the projector's output layer has a bias.
    """
    encoder, width = build_encoder(model.ARCH, model.ZERO_INIT_RESIDUAL)
    layers, norm, affine = model.PROJ_LAYERS, model.HEAD_BN, model.PROJ_BN_AFFINE
    head = build_projector(width, model.PROJ_HIDDEN, model.DIM, layers=layers, norm=norm, affine=affine, bias=bias)
    return encoder, head


def build_optional_predictor(model: CfgNode) -> nn.Sequential | None:
    """The predictor that MODEL.PREDICTOR selects: trained, fixed at its random initialization, or None."""
    if model.PREDICTOR == "none":
        return None
    head = build_predictor(model.DIM, model.PRED_DIM, model.HEAD_BN)
    return head.requires_grad_(False) if model.PREDICTOR == "fixed" else head


def _hidden(width: int, hidden: int, norm: bool) -> list[nn.Module]:
    linear = nn.Linear(width, hidden, bias=not norm)
    return [linear, *([nn.BatchNorm1d(hidden)] if norm else []), nn.ReLU(inplace=True)]


def _output(width: int, dim: int, norm: bool, affine: bool, bias: bool) -> list[nn.Module]:
    linear = nn.Linear(width, dim, bias=bias)
    if bias:
        linear.bias.requires_grad = not norm
    return [linear, *([nn.BatchNorm1d(dim, affine=affine)] if norm else [])]
