"""DINO's full checkpoint (facebookresearch/dino): student and teacher. DINO itself evaluates the teacher."""

from __future__ import annotations

from ssl_transfer.formats.manifest import DroppedTensor
from transfer.weights.containers import CheckpointFile
from transfer.weights.match import Match, list_dropped, select_prefix

PREFIXES = ("module.backbone.", "backbone.")


class Dino:
    """Each branch has a container of its own, with or without DistributedDataParallel's `module.`."""

    name = "dino"
    title = "DINO (full checkpoint)"

    def match(self, checkpoint: CheckpointFile) -> Match | None:
        branches, rules = {}, []
        dropped: list[DroppedTensor] = []
        for branch, container in (("online", "student"), ("target", "teacher")):
            tensors = checkpoint.tensors(container)
            prefix = next((p for p in PREFIXES if f"{p}conv1.weight" in tensors), None)
            if prefix is None:
                continue
            branches[branch] = select_prefix(tensors, prefix)
            head = prefix.replace("backbone.", "head.")
            for item in list_dropped(tensors, (prefix,), {head: "projector"}):
                dropped.append(DroppedTensor(name=f"{container}.{item.name}", why=item.why))
            rules.append(f"{container} holds {prefix}*")
        if not branches:
            return None
        return Match(
            layout=self.name, rule=" and ".join(rules), branches=branches, default="target", dropped=tuple(dropped)
        )

    def describe(self) -> str:
        return f"{' or '.join(f'{p}*' for p in PREFIXES)} in student or teacher"


LAYOUT = Dino()
