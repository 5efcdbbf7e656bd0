"""Putting another kind of batch normalisation in the place of every one of a model, parameters and statistics kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Make = Callable[[_BatchNorm], _BatchNorm]


def replace_batch_norm(model: ModuleT, make: Make) -> ModuleT:
    """Replace every batch normalisation by what `make` makes of it, which takes over its tensors and mode.

    Args:
        model: changed in place.
        make: given one, a new one of the same size and settings.
    """
    for name, child in model.named_children():
        if isinstance(child, _BatchNorm):
            setattr(model, name, _in_place_of(child, make(child)))
        else:
            replace_batch_norm(child, make)
    return model


def _in_place_of(norm: _BatchNorm, new: _BatchNorm) -> _BatchNorm:
    new.weight, new.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers():
        setattr(new, name, buffer)
    new.training = norm.training
    return new
