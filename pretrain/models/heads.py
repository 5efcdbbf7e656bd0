"""SimSiam's two heads, as in the released code (simsiam/builder.py; section 3 of arXiv 2011.10566) and its Table 3."""

from __future__ import annotations

from torch import nn


def projector(
    width: int,
    hidden: int,
    dim: int,
    layers: int = 3,
    norm: str = "default",
    affine: bool = False,
    bias: bool = True,
) -> nn.Sequential:
    """The projection MLP: BN after each layer, ReLU after each but the last.

    The output BN of the released code has no affine parameters; the bias of the last fc, which that BN cancels, keeps
    its initial value (`requires_grad` False). A layer without BN learns a bias.

    Args:
        width: width of the encoder's feature.
        hidden: width of the hidden layers.
        dim: width of the output, d in the paper.
        layers: how many fully connected layers (3; 2 on CIFAR-10).
        norm: one of `models.HEAD_BNS`: BN on no layer, on the hidden layers, or on all (`default` and `all`).
        affine: whether the output BN has trained scale and offset (section 4.4 has both).
        bias: whether the output layer has a bias (BYOL's has none).
    """
    modules: list[nn.Module] = []
    for _ in range(layers - 1):
        modules += _hidden(width, hidden, norm != "none")
        width = hidden
    return nn.Sequential(*modules, *_output(width, dim, norm in ("default", "all"), affine, bias))


def predictor(dim: int, hidden: int, norm: str = "default", bias: bool = True) -> nn.Sequential:
    """The prediction MLP, a bottleneck d → hidden → d: ReLU on the hidden layer, and by default BN on it alone.

    Args:
        dim: d.
        hidden: width of the hidden layer.
        norm: one of `models.HEAD_BNS`; `all` puts a BN on the output too. (That it has an affine, as BN has by default,
            and that the fc's bias before it is frozen, as the projector's, is inferred: the released code has none.)
        bias: whether the output layer has a bias (BYOL's has none).
    """
    return nn.Sequential(*_hidden(dim, hidden, norm != "none"), *_output(hidden, dim, norm == "all", True, bias))


def optional_predictor(kind: str, dim: int, hidden: int, norm: str = "default") -> nn.Sequential | None:
    """The predictor that MODEL.PREDICTOR names: trained, left at its random initialisation, or None.

    Args:
        kind: one of `models.PREDICTORS`.
        dim, hidden, norm: as `predictor` has them.
    """
    if kind == "none":
        return None
    head = predictor(dim, hidden, norm)
    return head.requires_grad_(False) if kind == "fixed" else head


def _hidden(width: int, hidden: int, norm: bool) -> list[nn.Module]:
    linear = nn.Linear(width, hidden, bias=not norm)
    return [linear, *([nn.BatchNorm1d(hidden)] if norm else []), nn.ReLU(inplace=True)]


def _output(width: int, dim: int, norm: bool, affine: bool, bias: bool) -> list[nn.Module]:
    linear = nn.Linear(width, dim, bias=bias)
    if bias:
        linear.bias.requires_grad = not norm
    return [linear, *([nn.BatchNorm1d(dim, affine=affine)] if norm else [])]
