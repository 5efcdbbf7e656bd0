"""DINO's full checkpoint (facebookresearch/dino): student and teacher, of which DINO itself evaluates the teacher."""

from __future__ import annotations

from transfer.weights.containers import Content
from transfer.weights.match import LeftOut, Match, left_out, under

PREFIXES = ("module.backbone.", "backbone.")


class Dino:
    """Each branch has a container of its own, with or without DistributedDataParallel's `module.`."""

    name = "dino"
    title = "DINO (full checkpoint)"

    def match(self, content: Content) -> Match | None:
        """See `match.Layout`."""
        branches, rules = {}, []
        left: list[LeftOut] = []
        for branch, container in (("online", "student"), ("target", "teacher")):
            tensors = content.tensors(container)
            prefix = next((p for p in PREFIXES if f"{p}conv1.weight" in tensors), None)
            if prefix is None:
                continue
            branches[branch] = under(tensors, prefix)
            head = prefix.replace("backbone.", "head.")
            found = left_out(tensors, {branch: prefix}, {head: "projector"})
            left += [LeftOut(f"{container}.{item.name}", item.why) for item in found]
            rules.append(f"{container} holds {prefix}*")
        if not branches:
            return None
        return Match(self.name, " and ".join(rules), branches, "target", tuple(left))

    def expects(self) -> str:
        """See `match.Layout`."""
        return f"{' or '.join(f'{p}*' for p in PREFIXES)} in student or teacher"


LAYOUT = Dino()
