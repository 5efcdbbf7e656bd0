"""SimSiam's two heads, as in the released code (simsiam/builder.py; section 3 of arXiv 2011.10566)."""

from __future__ import annotations

from torch import nn


def projector(width: int, hidden: int, dim: int, layers: int = 3) -> nn.Sequential:
    """The projection MLP: BN after each layer, ReLU after each but the last.

    The output BN has no affine parameters. The bias of the last fc, which that BN cancels, keeps its initial value
    (`requires_grad` False), as the released code has it.

    Args:
        width: width of the encoder's feature.
        hidden: width of the hidden layers.
        dim: width of the output, d in the paper.
        layers: how many fully connected layers (3; 2 on CIFAR-10).
    """
    modules: list[nn.Module] = []
    for _ in range(layers - 1):
        modules += [nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
        width = hidden
    last = nn.Linear(width, dim)
    last.bias.requires_grad = False
    return nn.Sequential(*modules, last, nn.BatchNorm1d(dim, affine=False))


def predictor(dim: int, hidden: int) -> nn.Sequential:
    """The prediction MLP, a bottleneck d → hidden → d: BN and ReLU on the hidden layer only."""
    return nn.Sequential(
        nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim)
    )
