"""Detectron2's `.pkl`: converted files (with a manifest), Detectron2's own, and those of other converters."""

from __future__ import annotations

import re

from common.formats.backbone import TORCHVISION
from common.formats.manifest import DroppedTensor
from transfer.weights.containers import CheckpointFile
from transfer.weights.converted import check_manifest
from transfer.weights.match import Match, Tensors
from transfer.weights.tensor_names import to_torchvision

BODY = re.compile(r"(stem\.conv1|res[2-5])\.")


class Detectron2:
    """Recognised by `stem.conv1.weight`. Detectron2 itself would misread a file without `__author__`."""

    name = "detectron2"
    title = "Detectron2 .pkl"

    def match(self, checkpoint: CheckpointFile) -> Match | None:
        """Recognise the layout.

        Raises:
            UserError: the file has a manifest and does not agree with it.
        """
        for container in (("model",), ()):
            tensors = checkpoint.tensors(*container)
            if "stem.conv1.weight" in tensors:
                return self._match(checkpoint, tensors, container)
        return None

    def describe(self) -> str:
        return "stem.conv1.weight in model or at the top level"

    def _match(self, checkpoint: CheckpointFile, tensors: Tensors, container: tuple[str, ...]) -> Match:
        top = checkpoint.at() or {}
        named = {to_torchvision(name): tensor for name, tensor in tensors.items() if BODY.match(name)}
        rule = f"{container[0] if container else 'the file'} holds stem.conv1.*"
        rule += f", author {top['__author__']}" if "__author__" in top else ", no __author__"
        dropped = tuple(_list_dropped(tensors))
        if "manifest" in top:
            manifest = check_manifest(top["manifest"], tensors, checkpoint.path)
            return Match(
                layout=self.name,
                rule=rule + ", a manifest",
                branches={manifest.source.branch: named},
                default=manifest.source.branch,
                dropped=dropped,
                preprocessing=manifest.preprocessing,
                origin=manifest.origin,
            )
        # Every known converter to these names starts from torchvision's weights.
        warnings = ["the file does not say its preprocessing: torchvision's is assumed (RGB, stride on the 3×3)"]
        if "__author__" not in top:
            warnings.append("the file has no __author__: Detectron2 itself would read it as Caffe2's")
        return Match(
            layout=self.name,
            rule=rule,
            branches={"online": named},
            dropped=dropped,
            preprocessing=TORCHVISION,
            warnings=tuple(warnings),
        )


def _list_dropped(tensors: Tensors) -> list[DroppedTensor]:
    groups = {name.rsplit(".", 1)[0]: name for name in tensors if not BODY.match(name)}
    return [
        DroppedTensor(name=f"{group}.*", why="projector" if ".fc." in name else "not of the backbone")
        for group, name in groups.items()
    ]


LAYOUT = Detectron2()
