"""PyContrast: InfoMin, PIRL, InsDis and its own MoCo runs; the momentum copy lies in a container of its own."""

from __future__ import annotations

from dataclasses import replace

from transfer.weights.containers import Content
from transfer.weights.match import LeftOut, Match, PrefixLayout

HEADS = {"module.head": "projector", "head": "projector"}


class PyContrast:
    """`model` is the trained encoder, `model_ema` its momentum copy (saved without `module.`)."""

    name = "pycontrast"
    title = "PyContrast: InfoMin, PIRL, InsDis, MoCo"
    online = PrefixLayout(name, title, (("model",),), ("module.encoder.", "encoder."), needs=tuple(HEADS), heads=HEADS)
    target = PrefixLayout(
        name, title, (("model_ema",),), ("module.encoder.", "encoder."), needs=tuple(HEADS), heads=HEADS
    )

    def match(self, content: Content) -> Match | None:
        """See `match.Layout`."""
        online, target = self.online.match(content), self.target.match(content)
        if online is None:
            return None
        contrast = tuple(LeftOut(f"contrast.{name}", "memory") for name in content.tensors("contrast"))
        left = (*online.left_out, *contrast)
        if target is None:
            return replace(online, left_out=left)
        branches = {**online.branches, "target": target.branches["online"]}
        return replace(online, branches=branches, left_out=left, rule=f"{online.rule}; {target.rule}")

    def expects(self) -> str:
        """See `match.Layout`."""
        return self.online.expects()


LAYOUT = PyContrast()
