"""The only complete ResNet of a file, or the one that `--prefix` names; never automatic.

An unknown prefix might be the momentum branch, or another method's teacher.
"""

from __future__ import annotations

from dataclasses import replace

from ssl_transfer.errors import UserError, abbreviate
from transfer.weights.containers import CheckpointFile
from transfer.weights.find_resnets import FoundResNet, find_resnets
from transfer.weights.match import Match, list_dropped
from transfer.weights.readers.detectron2 import LAYOUT as DETECTRON2
from transfer.weights.tensor_names import to_torchvision


class AnyPrefix:
    """Takes a file with exactly one complete ResNet."""

    name = "any"
    title = "the only whole ResNet in the file (never automatic)"

    def match(self, checkpoint: CheckpointFile) -> Match | None:
        """Recognise the layout.

        Raises:
            UserError: there are several.
        """
        found = find_resnets(checkpoint)
        if len(found) > 1:
            places = ", ".join(resnet.where for resnet in found)
            raise UserError(f"{checkpoint.path} contains {len(found)} ResNets: {places}; {choices(found)}")
        return match_resnet(checkpoint, found[0], f"the only ResNet in the file is {found[0].where}") if found else None

    def describe(self) -> str:
        return "ResNet with names of torchvision, Detectron2 or transformers under any prefix"


def choices(found: list[FoundResNet]) -> str:
    """The options that take one of several ResNets."""
    return "choose one: " + abbreviate([f"--prefix {resnet.place}" for resnet in found], 12, " or ")


def match_prefix(checkpoint: CheckpointFile, prefix: str, branch: str | None) -> Match | None:
    """The ResNet that `--prefix` names; None if there is none.

    Raises:
        UserError: several containers have it.
    """
    found = [resnet for resnet in find_resnets(checkpoint, complete=False) if resnet.is_at(prefix)]
    found = [resnet for resnet in found if resnet.arch] or found
    exact = [resnet for resnet in found if resnet.place.strip(".") == prefix.strip("*. ")]
    if len(found) > 1 and len(exact) != 1:
        raise UserError(f"{checkpoint.path}: --prefix {prefix} names {len(found)} ResNets; {choices(found)}")
    chosen = (exact or found)[:1]
    return match_resnet(checkpoint, chosen[0], f"--prefix: {chosen[0].where}", branch) if chosen else None


def match_resnet(checkpoint: CheckpointFile, resnet: FoundResNet, rule: str, branch: str | None = None) -> Match:
    """A match of one ResNet."""
    tensors = checkpoint.tensors(*resnet.container)
    if resnet.rename is to_torchvision:
        found = DETECTRON2.match_at(checkpoint, tensors, resnet.container, resnet.prefix)
        return replace(found, layout=LAYOUT.name, rule=rule + found.rule.partition(";")[2])
    return Match(
        layout=LAYOUT.name,
        rule=rule,
        branches={branch or "online": resnet.tensors},
        default=branch or "online",
        dropped=list_dropped(tensors, (resnet.prefix,), {}, resnet.rename),
    )


LAYOUT = AnyPrefix()
