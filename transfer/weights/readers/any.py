"""The only complete ResNet of a file, under whatever prefix; never automatic.

An unknown prefix might be the momentum branch, or another method's teacher.
"""

from __future__ import annotations

from common.errors import UserError
from transfer.weights.containers import CheckpointFile
from transfer.weights.find_resnets import find_resnets
from transfer.weights.match import Match, list_dropped


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
            raise UserError(f"{checkpoint.path} contains {len(found)} ResNets: {places}")
        if not found:
            return None
        only = found[0]
        return Match(
            layout=self.name,
            rule=f"the only ResNet in the file is {only.where}",
            branches={"online": only.tensors},
            dropped=list_dropped(checkpoint.tensors(*only.container), (only.prefix,), {}, only.rename),
        )

    def describe(self) -> str:
        return "ResNet with torchvision's names under any prefix"


LAYOUT = AnyPrefix()
