"""Detectron's and Caffe2's `.pkl` (MSRA R-50): flat arrays, BGR, the stride on the 1×1."""

from __future__ import annotations

from common.errors import UserError
from transfer.weights.canonical import MSRA, LeftOut
from transfer.weights.containers import Content
from transfer.weights.match import Match, Tensors
from transfer.weights.names import from_caffe2

HEADS = {"fc1000_": "classifier", "pred_": "classifier"}


class Caffe2:
    """Told by `conv1_w` and `res2_0_branch2a_w`, at the top level or under Detectron's `blobs`."""

    name = "caffe2"
    title = "Detectron, Caffe2 .pkl (MSRA R-50)"

    def match(self, content: Content) -> Match | None:
        """See `match.Layout`.

        Raises:
            UserError: the norms were folded into an affine layer, so their statistics are lost.
        """
        for container in ((), ("blobs",), ("model",)):
            blobs = content.tensors(*container)
            if "conv1_w" in blobs and "res2_0_branch2a_w" in blobs:
                return self._match(content, blobs, ".".join(container) or "the file")
        return None

    def expects(self) -> str:
        """See `match.Layout`."""
        return "conv1_w and res2_0_branch2a_w at the top level or in blobs"

    def _match(self, content: Content, blobs: Tensors, where: str) -> Match:
        named = {new: tensor for old, tensor in blobs.items() if (new := from_caffe2(old)) is not None}
        if not any(name.endswith("running_mean") for name in named):
            raise UserError(
                f"{content.path} is Detectron's form with the norms folded into an affine layer: the statistics that "
                "fine-tuning needs are gone; take Detectron2's ImageNetPretrained/MSRA/R-50.pkl instead"
            )
        rule = f"{where} holds conv1_w and resN_M_branch*"
        left, warnings = self._rest(blobs)
        return Match(self.name, rule, {"online": named}, "online", left, MSRA, warnings=warnings)

    def _rest(self, blobs: Tensors) -> tuple[tuple[LeftOut, ...], tuple[str, ...]]:
        """What is no backbone's. `conv1_b` has no place in a ResNet with norms; Detectron2's loader drops it too."""
        left, warnings = [], []
        for name, tensor in blobs.items():
            if from_caffe2(name) is not None:
                continue
            why = next((HEADS[head] for head in HEADS if name.startswith(head)), "not of the backbone")
            if name == "conv1_b":
                why = "bias before a norm, which Detectron2 drops as well"
                if bool(tensor.any()):
                    warnings.append(f"conv1_b is not zero (largest {float(tensor.abs().max()):.2g}): {why}")
            left.append(LeftOut(name, why))
        return tuple(left), tuple(warnings)


LAYOUT = Caffe2()
