"""Search a checkpoint for ResNets under any prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from transfer.weights.containers import CheckpointFile
from transfer.weights.inert_pickle import children
from transfer.weights.match import Rename, Tensors, same_name, select_detectron2, select_prefix
from transfer.weights.resnet import guess_arch, tensor_shapes
from transfer.weights.tensor_names import WRAPPERS, from_children, from_transformers, to_torchvision, unwrap

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

    @property
    def place(self) -> str:
        """What `--prefix` calls it: container and prefix."""
        return ".".join((*self.container, self.prefix)).rstrip(".") or "."

    def is_at(self, text: str) -> bool:
        """Whether `--prefix` names it, with or without its container."""
        wanted = text.replace(": ", ".").strip("*. ")
        return wanted in (self.place.strip("."), self.prefix.rstrip("."))


_NAMINGS: tuple[tuple[str, str, Rename], ...] = (
    ("conv1.weight", "layer1.0.conv1.weight", same_name),
    ("0.weight", "4.0.conv1.weight", from_children),
    ("stem.conv1.weight", "res2.0.conv1.weight", to_torchvision),
    ("embedder.embedder.convolution.weight", "embedder.embedder.normalization.weight", from_transformers),
)
"""The names of two tensors near a ResNet's beginning, and the way to torchvision's names."""

MAX_FOUND = 64
"""ResNets that are listed; a hostile file may have any number of beginnings."""


def find_resnets(checkpoint: CheckpointFile, complete: bool = True) -> list[FoundResNet]:
    """Find every ResNet in a file.

    Args:
        checkpoint: the file.
        complete: only those with every tensor of a ResNet-50, -101 or -152.
    """
    found: list[FoundResNet] = []
    for container in find_state_dicts(checkpoint.tree):
        tensors = checkpoint.tensors(*container)
        for first, second, rename in _NAMINGS:
            prefixes = [name.removesuffix(first) for name in tensors if name.endswith(first)]
            prefixes = [p for p in prefixes if f"{p}{second}" in tensors and (not p or p.endswith("."))]
            for prefix in prefixes[: MAX_FOUND - len(found)]:
                found += _resnet_at(container, prefix, rename, tensors)
    return [resnet for resnet in found if resnet.arch or not complete]


def _resnet_at(container: tuple[str, ...], prefix: str, rename: Rename, tensors: Tensors) -> Iterator[FoundResNet]:
    is_detectron2 = rename is to_torchvision
    named = select_detectron2(tensors, prefix) if is_detectron2 else select_prefix(tensors, prefix, rename)
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
        if len(keys) > MAX_DEPTH or id(node) in seen:
            return
        seen.add(id(node))
        items = children(node)
        if any(isinstance(value, torch.Tensor) for value in items.values()):
            yield keys
        for key, value in items.items():
            if isinstance(key, str) and children(value):
                yield from search(value, (*keys, key))

    return search(tree, ())


def unwrapped_views(checkpoint: CheckpointFile) -> Iterator[tuple[CheckpointFile, str]]:
    """The file as it is, then with its tensors' names without wrappers, and a note of what was removed.

    torch.compile's and FSDP's wrappers are removed first, then every `module.` and a leading `model.`; then one
    `module.` is put in front, because many layouts have it. A view in which two tensors had one name is left out.
    """
    yield checkpoint, ""
    renames: tuple[Callable[[str], str], ...] = (
        unwrap,
        lambda name: unwrap(name, parallel=True),
        lambda name: f"module.{unwrap(name, parallel=True)}",
    )
    names = {name for keys in find_state_dicts(checkpoint.tree) for name in checkpoint.tensors(*keys)}
    for rename in renames:
        if all(rename(name) == name for name in names):
            continue
        tree = _rename_tensors(checkpoint.tree, rename)
        if tree is not None:
            removed = sorted({part for name in names for part in name.split(".") if part in WRAPPERS})
            yield replace(checkpoint, tree=tree), f"; wrappers removed: {', '.join(removed) or 'none, module added'}"


def _rename_tensors(tree: Any, rename: Callable[[str], str]) -> Any:
    """The tree with other names for its tensors; None if two in one mapping would get the same."""
    made: dict[int, Any] = {}

    def copy(node: Any) -> Any:
        if isinstance(node, (list, tuple)) and children(node):
            return [copy(item) for item in node]
        if not isinstance(node, Mapping):
            return node
        if id(node) not in made:
            made[id(node)] = new = {}
            for key, value in node.items():
                name = rename(key) if isinstance(key, str) and isinstance(value, torch.Tensor) else key
                if name in new:
                    raise KeyError(name)
                new[name] = copy(value)
        return made[id(node)]

    try:
        return copy(tree)
    except (KeyError, RecursionError):
        return None
