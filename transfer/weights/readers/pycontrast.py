"""PyContrast: InfoMin, PIRL, InsDis and its own MoCo runs; the momentum copy has its own container."""

from __future__ import annotations

from dataclasses import replace

from ssl_transfer.formats.manifest import DroppedTensor
from transfer.weights.containers import CheckpointFile
from transfer.weights.match import Match, PrefixLayout

HEADS = {"module.head": "projector", "head": "projector"}


class PyContrast:
    """`model` is the trained encoder, `model_ema` its momentum copy (saved without `module.`)."""

    name = "pycontrast"
    title = "PyContrast: InfoMin, PIRL, InsDis, MoCo"
    online = PrefixLayout(
        name=name,
        title=title,
        containers=(("model",),),
        online=("module.encoder.", "encoder."),
        needs=tuple(HEADS),
        heads=HEADS,
    )
    target = replace(online, containers=(("model_ema",),))

    def match(self, checkpoint: CheckpointFile) -> Match | None:
        online, target = self.online.match(checkpoint), self.target.match(checkpoint)
        if online is None:
            return None
        contrast = tuple(
            DroppedTensor(name=f"contrast.{name}", why="memory") for name in checkpoint.tensors("contrast")
        )
        dropped = (*online.dropped, *contrast)
        if target is None:
            return replace(online, dropped=dropped)
        branches = {**online.branches, "target": target.branches["online"]}
        return replace(online, branches=branches, dropped=dropped, rule=f"{online.rule}; {target.rule}")

    def describe(self) -> str:
        return self.online.describe()


LAYOUT = PyContrast()
