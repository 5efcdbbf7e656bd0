"""No layout at all: the one whole ResNet that lies in the file, wherever that is. Only when the user asks for it."""

from __future__ import annotations

from common.errors import UserError
from transfer.weights.containers import Content
from transfer.weights.match import Match, left_out
from transfer.weights.survey import survey


class AnyPrefix:
    """Never found by itself: a prefix nobody knows might be the momentum branch, or a teacher of another method."""

    name = "any"
    title = "the only whole ResNet in the file (never automatic)"

    def match(self, content: Content) -> Match | None:
        """See `match.Layout`.

        Raises:
            UserError: there are several.
        """
        found = survey(content)
        if len(found) > 1:
            raise UserError(f"{content.path} holds {len(found)} ResNets: {', '.join(f.where for f in found)}")
        if not found:
            return None
        only = found[0]
        left = left_out(content.tensors(*only.container), {"online": only.prefix}, {}, only.rename)
        return Match(
            self.name, f"the only ResNet in the file is {only.where}", {"online": only.tensors}, "online", left
        )

    def expects(self) -> str:
        """See `match.Layout`."""
        return "ResNet with torchvision's names under any prefix"


LAYOUT = AnyPrefix()
