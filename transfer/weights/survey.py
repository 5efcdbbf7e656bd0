"""Every ResNet in a file, whatever its prefix: for the user who asks what is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from transfer.weights import architecture
from transfer.weights.containers import Content
from transfer.weights.match import keep, under
from transfer.weights.names import from_children

DEPTH = 5


@dataclass(frozen=True)
class Found:
    """A ResNet in a file.

    Attributes:
        container: nested keys of the state dict it lies in.
        prefix: what its tensors' names begin with there.
        rename: name under the prefix → torchvision's.
        tensors: torchvision-named, with whatever else lies under the prefix.
        arch: `resnet50`, … where it is whole; None where it is another kind or a part of one.
    """

    container: tuple[str, ...]
    prefix: str
    rename: Callable[[str], str | None]
    tensors: Mapping[str, torch.Tensor]
    arch: str | None

    @property
    def where(self) -> str:
        """Container and prefix, in words."""
        return (
            f"{'.'.join(self.container) or 'the file'}: {self.prefix or 'unprefixed names'}{'*' if self.prefix else ''}"
        )


def survey(content: Content, whole: bool = True) -> list[Found]:
    """Every ResNet in the file.

    Args:
        content: the file.
        whole: only those that have every tensor of a ResNet-50, -101 or -152.
    """
    found: list[Found] = []
    for container in state_dicts(content.tree):
        tensors = content.tensors(*container)
        for first, rename in (("conv1.weight", keep), ("0.weight", from_children)):
            for name in tensors:
                prefix = name.removesuffix(first)
                if name.endswith(first) and (not prefix or prefix.endswith(".")):
                    found += _resnet(container, prefix, rename, tensors)
    return [item for item in found if item.arch or not whole]


def _resnet(
    container: tuple[str, ...], prefix: str, rename: Callable[[str], str | None], tensors: Mapping[str, torch.Tensor]
) -> Iterator[Found]:
    named = under(tensors, prefix, rename)
    if "bn1.weight" not in named or "layer1.0.conv1.weight" not in named:
        return
    arch = architecture.guess(named)
    if arch is not None:
        shapes = architecture.shapes(arch)
        fits = all(name in named and tuple(named[name].shape) == shape for name, shape in shapes.items())
        arch = arch if fits else None
    yield Found(container, prefix, rename, named, arch)


def state_dicts(tree: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The nested keys of every mapping that holds tensors directly, outermost first."""
    if not isinstance(tree, Mapping) or len(keys) > DEPTH:
        return
    if any(isinstance(value, torch.Tensor) for value in tree.values()):
        yield keys
    for key, value in tree.items():
        if isinstance(key, str) and isinstance(value, Mapping):
            yield from state_dicts(value, (*keys, key))
