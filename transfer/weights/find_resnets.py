"""Search a checkpoint for ResNets under any prefix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from transfer.weights.containers import CheckpointFile
from transfer.weights.match import Rename, Tensors, same_name, select_prefix
from transfer.weights.resnet import guess_arch, tensor_shapes
from transfer.weights.tensor_names import from_children

MAX_DEPTH = 5


@dataclass(frozen=True)
class FoundResNet:
    """A ResNet in a file.

    Attributes:
        container: nested keys of its state dict.
        prefix: what its tensors' names begin with there.
        rename: name after the prefix → torchvision's.
        tensors: torchvision-named, with everything else that is under the prefix.
        arch: `resnet50`, … if it is complete; None if it is incomplete or of another kind.
    """

    container: tuple[str, ...]
    prefix: str
    rename: Rename
    tensors: Tensors
    arch: str | None

    @property
    def where(self) -> str:
        """Container and prefix, as text."""
        prefix = f"{self.prefix}*" if self.prefix else "unprefixed names"
        return f"{'.'.join(self.container) or 'the file'}: {prefix}"


def find_resnets(checkpoint: CheckpointFile, complete: bool = True) -> list[FoundResNet]:
    """Find every ResNet in a file.

    Args:
        checkpoint: the file.
        complete: only those with every tensor of a ResNet-50, -101 or -152.
    """
    found: list[FoundResNet] = []
    for container in find_state_dicts(checkpoint.tree):
        tensors = checkpoint.tensors(*container)
        for first, rename in (("conv1.weight", same_name), ("0.weight", from_children)):
            for name in tensors:
                prefix = name.removesuffix(first)
                if name.endswith(first) and (not prefix or prefix.endswith(".")):
                    found += _resnet_at(container, prefix, rename, tensors)
    return [resnet for resnet in found if resnet.arch or not complete]


def _resnet_at(container: tuple[str, ...], prefix: str, rename: Rename, tensors: Tensors) -> Iterator[FoundResNet]:
    named = select_prefix(tensors, prefix, rename)
    if "bn1.weight" not in named or "layer1.0.conv1.weight" not in named:
        return
    arch = guess_arch(named)
    if arch is not None:
        shapes = tensor_shapes(arch)
        complete = all(name in named and tuple(named[name].shape) == shape for name, shape in shapes.items())
        arch = arch if complete else None
    yield FoundResNet(container, prefix, rename, named, arch)


def find_state_dicts(tree: Any) -> Iterator[tuple[str, ...]]:
    """The nested keys of every mapping that directly contains tensors, outermost first; each mapping once."""
    seen: set[int] = set()

    def search(node: Any, keys: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if not isinstance(node, Mapping) or len(keys) > MAX_DEPTH or id(node) in seen:
            return
        seen.add(id(node))
        if any(isinstance(value, torch.Tensor) for value in node.values()):
            yield keys
        for key, value in node.items():
            if isinstance(key, str) and isinstance(value, Mapping):
                yield from search(value, (*keys, key))

    return search(tree, ())
