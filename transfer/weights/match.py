"""What a reader says of a file: whose layout it is, why, and which tensors its encoders hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from transfer.weights.canonical import TORCHVISION, LeftOut, Preprocessing
from transfer.weights.containers import Content

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Match:
    """A layout found in a file.

    Attributes:
        layout: the reader's name.
        rule: what in the file made the reader take it.
        branches: `online` and/or `target` → tensors, torchvision-named; counters and a classifier may be among them.
        default: the branch taken unless the user names one: the one the layout's own authors evaluate.
        left_out: what lies outside the branches, and why it is left.
        preprocessing: what images the weights were trained on.
        arch: the architecture, where the file names it.
        origin: how the weights were trained, where the file says.
        warnings: what the user should know.
    """

    layout: str
    rule: str
    branches: Mapping[str, Tensors]
    default: str = "online"
    left_out: tuple[LeftOut, ...] = ()
    preprocessing: Preprocessing = TORCHVISION
    arch: str | None = None
    origin: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()


class Layout(Protocol):
    """A reader of one family of checkpoints."""

    name: str
    title: str

    def match(self, content: Content) -> Match | None:
        """The layout as found in the file; None when the file is not of this family."""
        ...

    def expects(self) -> str:
        """What a file of this layout holds, in words, for an error when it was asked for and is not there."""
        ...


def keep(name: str) -> str | None:
    """The renaming of layouts that use torchvision's own names."""
    return name


@dataclass(frozen=True)
class PrefixLayout:
    """A layout told by where its state dict lies and what its encoders' names begin with.

    Attributes:
        name: what `--source` calls it.
        title: what people call it.
        containers: nested keys under which the state dict may lie; `()` is the file's top level.
        online: prefixes of the encoder that is trained by gradient; the first that is there is taken.
        target: prefixes of its momentum copy.
        default: the branch its authors evaluate.
        heads: name or prefix → why it is left out.
        needs: prefixes of which at least one must be there besides the encoder (what tells it from its kin).
        lacks: prefixes that must not be there.
        rename: name under the prefix → torchvision's name, or None for what is not of a ResNet.
    """

    name: str
    title: str
    containers: tuple[tuple[str, ...], ...]
    online: tuple[str, ...]
    target: tuple[str, ...] = ()
    default: str = "online"
    heads: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    rename: Callable[[str], str | None] = keep

    def match(self, content: Content) -> Match | None:
        """See `Layout`."""
        for container in self.containers:
            tensors = content.tensors(*container)
            found = self._match_in(tensors, ".".join(container) or "the file")
            if found is not None:
                return found
        return None

    def expects(self) -> str:
        """See `Layout`."""
        where = " or ".join(".".join(c) if c else "the top level" for c in self.containers)
        prefixes = " or ".join(f"{p}*" if p else "unprefixed names" for p in (*self.online, *self.target))
        return f"{prefixes} in {where}" + (f", with {' or '.join(f'{n}*' for n in self.needs)}" if self.needs else "")

    def _match_in(self, tensors: Tensors, where: str) -> Match | None:
        evidence = [need for need in self.needs if any(k.startswith(need) for k in tensors)]
        if (self.needs and not evidence) or any(k.startswith(lack) for k in tensors for lack in self.lacks):
            return None
        chosen = {"online": self._prefix(tensors, self.online), "target": self._prefix(tensors, self.target)}
        prefixes = {branch: prefix for branch, prefix in chosen.items() if prefix is not None}
        if not prefixes:
            return None
        body = {name: tensor for name, tensor in tensors.items() if not name.startswith(tuple(self.heads))}
        branches = {branch: under(body, prefix, self.rename) for branch, prefix in prefixes.items()}
        named = ", ".join(f"{prefix or 'unprefixed names'}{'*' if prefix else ''}" for prefix in prefixes.values())
        rule = f"{where} holds {named}" + (f" and {evidence[0]}*" if evidence else "")
        left = left_out(tensors, prefixes, self.heads, self.rename)
        return Match(self.name, rule, branches, self.default, left)

    def _prefix(self, tensors: Tensors, prefixes: tuple[str, ...]) -> str | None:
        """The first prefix under which a ResNet begins."""
        for prefix in prefixes:
            names = {self.rename(k[len(prefix) :]) for k in tensors if k.startswith(prefix)}
            if names & {"conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight", "bn1.weight"}:
                return prefix
        return None


def under(tensors: Tensors, prefix: str, rename: Callable[[str], str | None] = keep) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, by the name that `rename` gives the rest."""
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            new = rename(name[len(prefix) :])
            if new is not None:
                found[new] = tensor
    return found


def left_out(
    tensors: Tensors,
    prefixes: Mapping[str, str],
    heads: Mapping[str, str],
    rename: Callable[[str], str | None] = keep,
) -> tuple[LeftOut, ...]:
    """What lies outside the branches or is a known head, grouped by module, each with why it is not needed."""
    groups: dict[str, str] = {}
    for name in tensors:
        head = next((h for h in heads if name.startswith(h)), None)
        if head is not None:
            groups.setdefault(head if head in tensors else f"{head.rstrip('.')}.*", heads[head])
        elif not any(name.startswith(p) and rename(name[len(p) :]) is not None for p in prefixes.values()):
            group = f"{name.rsplit('.', 1)[0]}.*" if "." in name else name
            groups.setdefault(group, "not of the backbone")
    return tuple(LeftOut(name, why) for name, why in groups.items())
