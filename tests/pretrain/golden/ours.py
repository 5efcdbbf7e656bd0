"""Our SimSiam, and the methods made of it, on the golden values' narrow model."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from pretrain.methods.simsiam import SimSiam
from pretrain.models.heads import build_predictor, build_projector
from tests.pretrain.golden import narrow

MethodT = TypeVar("MethodT", bound=SimSiam)


def narrow_simsiam() -> SimSiam:
    """In float64, with the golden run's initial weights."""
    return narrow_method(SimSiam)


def narrow_method(
    kind: type[MethodT], *first: Any, norm: str = "default", affine: bool = False, predict: bool = True, **more: Any
) -> MethodT:
    """`kind(*first, encoder, heads, …, **more)` in float64, with the golden run's initial weights.

    Args:
        kind: SimSiam or what is made of it.
        first: its own arguments, before SimSiam's.
        norm, affine: as `pretrain.models.heads` has them.
        predict: whether there is a predictor.
        more: other arguments of SimSiam.
    """
    encoder = narrow.NarrowResNet(narrow.DIM, zero_init_residual=True)
    encoder.fc = nn.Identity()
    method = kind(
        *first,
        encoder=encoder,
        projector=build_projector(narrow.WIDTH, narrow.WIDTH, narrow.DIM, norm=norm, affine=affine),
        predictor=build_predictor(narrow.DIM, narrow.PRED_DIM, norm) if predict else None,
        dim=narrow.DIM,
        **more,
    ).double()
    narrow.fill(method)
    return method
