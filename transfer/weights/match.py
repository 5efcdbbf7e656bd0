"""How a layout recognises a checkpoint: `Match`, the result, and `PrefixLayout`, for layouts that differ in names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from ssl_transfer.errors import UserError
from ssl_transfer.formats.backbone import TORCHVISION, Preprocessing
from ssl_transfer.formats.manifest import DroppedTensor
from transfer.weights.containers import CheckpointFile
from transfer.weights.resnet import COUNTER
from transfer.weights.tensor_names import to_torchvision

Tensors = Mapping[str, torch.Tensor]
Rename = Callable[[str], str | None]
"""A tensor's name in the checkpoint → torchvision's name, or None for a tensor that is not part of a ResNet."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """A layout recognised in a file.

    Attributes:
        layout: the layout's name.
        rule: what in the file it was recognised by.
        branches: `online` and/or `target` → tensors, torchvision-named; counters and a classifier may be among them.
        default: the branch to read by default: the one that the layout's authors evaluate.
        dropped: tensors outside the branches, and why they are not used.
        preprocessing: how images were prepared in training.
        arch: the architecture, where the file names it.
        origin: how the weights were trained, where the file says so.
        warnings: what the user should know.
    """

    layout: str
    rule: str
    branches: Mapping[str, Tensors]
    default: str = "online"
    dropped: tuple[DroppedTensor, ...] = ()
    preprocessing: Preprocessing = TORCHVISION
    arch: str | None = None
    origin: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()


class Layout(Protocol):
    """A reader of one family of checkpoints."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    def match(self, checkpoint: CheckpointFile) -> Match | None:
        """Recognise the layout; None if the file is not of this family."""
        ...

    def describe(self) -> str:
        """What a file of this layout contains, for the error if `--source` names it and the file does not fit."""
        ...


def same_name(name: str) -> str:
    return name


@dataclass(frozen=True, kw_only=True)
class PrefixLayout:
    """A layout that is recognised by where its state dict is and by the prefixes of its encoders.

    Attributes:
        name: what `--source` calls it.
        title: the project or method.
        containers: nested keys under which the state dict may be; `()` is the file's top level.
        online: prefixes of the encoder that is trained by gradient; the first one present is used.
        target: prefixes of its momentum copy.
        default: the branch that its authors evaluate.
        heads: name or prefix → why it is dropped.
        needs: prefixes of which at least one must be present besides the encoder, to exclude related layouts.
        lacks: prefixes that must not be present.
        rename: applied to the name after the prefix.
        is_detector: what it reads are trained detectors, whose norms may be frozen.
    """

    name: str
    title: str
    containers: tuple[tuple[str, ...], ...] = (("state_dict",),)
    online: tuple[str, ...]
    target: tuple[str, ...] = ()
    default: str = "online"
    heads: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    rename: Rename = same_name
    is_detector: bool = False

    def match(self, checkpoint: CheckpointFile) -> Match | None:
        for container in self.containers:
            tensors = checkpoint.tensors(*container)
            match = self._match_in(tensors, ".".join(container) or "the file")
            if match is not None:
                return describe_frozen_norms(match, checkpoint.path) if self.is_detector else match
        return None

    def describe(self) -> str:
        where = " or ".join(".".join(c) if c else "the top level" for c in self.containers)
        prefixes = " or ".join(f"{p}*" if p else "unprefixed names" for p in (*self.online, *self.target))
        return f"{prefixes} in {where}" + (f", with {' or '.join(f'{n}*' for n in self.needs)}" if self.needs else "")

    def _match_in(self, tensors: Tensors, where: str) -> Match | None:
        evidence = [need for need in self.needs if any(k.startswith(need) for k in tensors)]
        if (self.needs and not evidence) or any(k.startswith(lack) for k in tensors for lack in self.lacks):
            return None
        found = {"online": self._find_prefix(tensors, self.online), "target": self._find_prefix(tensors, self.target)}
        prefixes = {branch: prefix for branch, prefix in found.items() if prefix is not None}
        if not prefixes:
            return None
        body = {name: tensor for name, tensor in tensors.items() if not name.startswith(tuple(self.heads))}
        named = ", ".join(f"{prefix or 'unprefixed names'}{'*' if prefix else ''}" for prefix in prefixes.values())
        return Match(
            layout=self.name,
            rule=f"{where} holds {named}" + (f" and {evidence[0]}*" if evidence else ""),
            branches={branch: select_prefix(body, prefix, self.rename) for branch, prefix in prefixes.items()},
            default=self.default,
            dropped=list_dropped(tensors, tuple(prefixes.values()), self.heads, self.rename),
        )

    def _find_prefix(self, tensors: Tensors, prefixes: tuple[str, ...]) -> str | None:
        """The first prefix under which a ResNet begins."""
        for prefix in prefixes:
            names = {self.rename(k[len(prefix) :]) for k in tensors if k.startswith(prefix)}
            if names & {"conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight", "bn1.weight"}:
                return prefix
        return None


FROZEN = "; frozen norms (no counters): their statistics are those of the weights that the detector began with"


def describe_frozen_norms(match: Match, path: str) -> Match:
    """The match of a trained detector; its rule says if the norms were frozen in training (FrozenBatchNorm).

    Raises:
        UserError: these norms hold a scale and a shift only, into which the statistics were folded before training.
    """
    tensors = match.branches[match.default]
    if any(name.endswith(COUNTER) for name in tensors):
        return match
    means = [value for name, value in tensors.items() if name.endswith("running_mean")]
    variances = [value for name, value in tensors.items() if name.endswith("running_var")]
    folded = means and not any(mean.any() for mean in means)
    if folded and all(bool(((variance - 1).abs() < 1e-4).all()) for variance in variances):
        raise UserError(
            f"{path} ({match.rule}): every running_mean is 0 and every running_var 1: the frozen norms' statistics "
            "were folded away before this detector was trained, and fine-tuning needs them; no option converts it"
        )
    return replace(match, rule=match.rule + FROZEN)


def select_prefix(tensors: Tensors, prefix: str, rename: Rename = same_name) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, renamed."""
    selected = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            new = rename(name[len(prefix) :])
            if new is not None:
                selected[new] = tensor
    return selected


_DETECTRON2 = re.compile(r"(stem\.conv1|res[2-5]\.\d+)\.")


def select_detectron2(tensors: Tensors, prefix: str) -> dict[str, torch.Tensor]:
    """The ResNet with Detectron2's names under `prefix`; a C4 detector has its last stage in the RoI heads."""
    heads = f"{prefix.removesuffix('backbone.')}roi_heads.res5."
    return {
        to_torchvision(rest): tensor
        for name, tensor in tensors.items()
        for rest in (name.removeprefix(heads.removesuffix("res5.") if name.startswith(heads) else prefix),)
        if name.startswith((prefix, heads)) and _DETECTRON2.match(rest)
    }


def list_dropped(
    tensors: Tensors, prefixes: tuple[str, ...], heads: Mapping[str, str], rename: Rename = same_name
) -> tuple[DroppedTensor, ...]:
    """What is outside the encoders' prefixes or is a known head, grouped by module."""
    groups: dict[str, str] = {}
    for name in tensors:
        head = next((h for h in heads if name.startswith(h)), None)
        if head is not None:
            groups.setdefault(head if head in tensors else f"{head.rstrip('.')}.*", heads[head])
        elif not any(name.startswith(p) and rename(name[len(p) :]) is not None for p in prefixes):
            group = f"{name.rsplit('.', 1)[0]}.*" if "." in name else name
            groups.setdefault(group, "not of the backbone")
    return tuple(DroppedTensor(name=name, why=why) for name, why in groups.items())
