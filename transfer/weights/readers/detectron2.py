"""Detectron2's `.pkl`: ours (with a manifest), Detectron2's own, and those of other projects' converters."""

from __future__ import annotations

import re
from typing import Any

from transfer.weights import manifest as manifests
from transfer.weights.canonical import TORCHVISION, LeftOut, Preprocessing
from transfer.weights.containers import Content
from transfer.weights.match import Match, Tensors
from transfer.weights.names import to_torchvision

BODY = re.compile(r"(stem\.conv1|res[2-5])\.")


class Detectron2:
    """Told by `stem.conv1.weight`. A file without `__author__` is read, though Detectron2 itself would misread it."""

    name = "detectron2"
    title = "Detectron2 .pkl"

    def match(self, content: Content) -> Match | None:
        """See `match.Layout`.

        Raises:
            UserError: the file has our manifest and does not agree with it.
        """
        for container in (("model",), ()):
            tensors = content.tensors(*container)
            if "stem.conv1.weight" in tensors:
                return self._match(content, tensors, container)
        return None

    def expects(self) -> str:
        """See `match.Layout`."""
        return "stem.conv1.weight in model or at the top level"

    def _match(self, content: Content, tensors: Tensors, container: tuple[str, ...]) -> Match:
        top = content.at() or {}
        named = {to_torchvision(name): tensor for name, tensor in tensors.items() if BODY.match(name)}
        rule = f"{container[0] if container else 'the file'} holds stem.conv1.*"
        rule += f", author {top['__author__']}" if "__author__" in top else ", no __author__"
        left = tuple(_left_out(tensors))
        if "manifest" in top:
            block = manifests.check(top["manifest"], tensors, content.path)
            origin, branch = top["manifest"].get("origin"), top["manifest"]["source"]["branch"]
            return Match(self.name, rule + ", a manifest", {branch: named}, branch, left, block, origin=origin)
        block, warnings = _assumed(top)
        return Match(self.name, rule, {"online": named}, "online", left, block, warnings=warnings)


def _left_out(tensors: Tensors) -> list[LeftOut]:
    groups = {name.rsplit(".", 1)[0]: name for name in tensors if not BODY.match(name)}
    return [
        LeftOut(f"{group}.*", "projector" if ".fc." in name else "not of the backbone")
        for group, name in groups.items()
    ]


def _assumed(top: dict[str, Any]) -> tuple[Preprocessing, tuple[str, ...]]:
    """The block of a file that does not say its own: every known converter to these names starts from torchvision's."""
    said = "the file does not say its preprocessing: torchvision's is assumed (RGB, stride on the 3×3)"
    if "__author__" in top:
        return TORCHVISION, (said,)
    return TORCHVISION, (said, "the file has no __author__: Detectron2 itself would read it as Caffe2's")


LAYOUT = Detectron2()
