"""The C4 head with an extra norm after res5.

Source: He et al., Momentum Contrast (arXiv 1911.05722), section 4.2, and facebookresearch/moco, detection/train_net.py:
the features of a pre-trained network may differ in scale from supervised ones, so a trained norm follows res5.
"""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads

NAME = "Res5ROIHeadsExtraNorm"


class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """Detectron2's `Res5ROIHeads` with one more norm at the end of res5, shared by the box and the mask branch.

    The norm is `MODEL.RESNETS.NORM` over res5's output channels (2048 for ResNet-50), named `roi_heads.res5.norm`.
    """

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
        super().__init__(cfg, input_shape)
        self.res5.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, self.res5[-1].out_channels))


def register() -> None:
    """Register `MODEL.ROI_HEADS.NAME: Res5ROIHeadsExtraNorm` with Detectron2. A second call changes nothing."""
    if NAME not in ROI_HEADS_REGISTRY:
        ROI_HEADS_REGISTRY.register(Res5ROIHeadsExtraNorm)
