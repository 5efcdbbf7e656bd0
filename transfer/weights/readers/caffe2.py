"""Detectron's and Caffe2's `.pkl` (MSRA R-50): flat arrays, BGR, with the stride in the 1×1 convolution."""

from __future__ import annotations

from ssl_transfer.errors import UserError
from ssl_transfer.formats.backbone import MSRA
from ssl_transfer.formats.manifest import DroppedTensor
from transfer.weights.containers import CheckpointFile
from transfer.weights.match import Match, Tensors
from transfer.weights.tensor_names import from_caffe2

HEADS = {"fc1000_": "classifier", "pred_": "classifier"}


class Caffe2:
    """Recognised by `conv1_w` and `res2_0_branch2a_w`, at the top level or under Detectron's `blobs`."""

    name = "caffe2"
    title = "Detectron, Caffe2 .pkl (MSRA R-50)"

    def match(self, checkpoint: CheckpointFile) -> Match | None:
        """Recognise the layout.

        Raises:
            UserError: the norms were folded into affine layers, so their statistics are lost.
        """
        for container in ((), ("blobs",), ("model",)):
            blobs = checkpoint.tensors(*container)
            if "conv1_w" in blobs and "res2_0_branch2a_w" in blobs:
                return self._match(checkpoint, blobs, ".".join(container) or "the file")
        return None

    def describe(self) -> str:
        return "conv1_w and res2_0_branch2a_w at the top level or in blobs"

    def _match(self, checkpoint: CheckpointFile, blobs: Tensors, where: str) -> Match:
        named = {new: tensor for old, tensor in blobs.items() if (new := from_caffe2(old)) is not None}
        if not any(name.endswith("running_mean") for name in named):
            raise UserError(
                f"{checkpoint.path} has Detectron's layout with norms folded into affine layers: the statistics that "
                "fine-tuning needs are missing; use Detectron2's ImageNetPretrained/MSRA/R-50.pkl instead"
            )
        rule = f"{where} holds conv1_w and resN_M_branch*"
        dropped, warnings = self._list_dropped(blobs)
        return Match(
            layout=self.name,
            rule=rule,
            branches={"online": named},
            dropped=dropped,
            preprocessing=MSRA,
            warnings=warnings,
        )

    def _list_dropped(self, blobs: Tensors) -> tuple[tuple[DroppedTensor, ...], tuple[str, ...]]:
        """What is not used, and warnings. A ResNet with norms has no `conv1_b`; Detectron2's loader drops it, too."""
        dropped, warnings = [], []
        for name, tensor in blobs.items():
            if from_caffe2(name) is not None:
                continue
            why = next((HEADS[head] for head in HEADS if name.startswith(head)), "not of the backbone")
            if name == "conv1_b":
                why = "bias before a norm, which Detectron2 drops as well"
                if bool(tensor.any()):
                    warnings.append(f"conv1_b is not zero (largest {float(tensor.abs().max()):.2g}): {why}")
            dropped.append(DroppedTensor(name=name, why=why))
        return tuple(dropped), tuple(warnings)


LAYOUT = Caffe2()
