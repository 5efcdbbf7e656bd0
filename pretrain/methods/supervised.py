"""Supervised classification, the baseline with labels: one view, the encoder, one linear layer, cross-entropy.

This is the usual ImageNet training (arXiv 1706.02677, section 5.1; pytorch/examples imagenet/main.py).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import nn
from torchvision.models import ResNet

from pretrain.data.dataset import Batch
from pretrain.methods.base import Method, MethodOutput, TrainingInfo, full_precision
from pretrain.methods.parts.losses import topk_correct
from pretrain.models.encoder import build_encoder
from pretrain.rules import reject_unused_keys

NEEDS_LABELS = True

UNUSED_KEYS = (
    *("MODEL.PROJ_LAYERS", "MODEL.PROJ_HIDDEN", "MODEL.DIM", "MODEL.PRED_DIM", "MODEL.PREDICTOR", "MODEL.HEAD_BN"),
    *("MODEL.PROJ_BN_AFFINE", "SOLVER.FIX_PRED_LR", "AUGMENT.SECOND.BLUR_PROB", "AUGMENT.SECOND.SOLARIZE_PROB"),
)
"""Keys of heads and second views."""


class Supervised(Method):
    """A classifier; `prepare` creates its layer, with torch's default initialization and one output per class.

    `MethodOutput.metrics` holds `train_top1` and `train_top5` in per cent.

    Args:
        encoder: maps images to features (N, width).
        width: also d: collapse is detected in the features.
    """

    classifier: nn.Linear
    views = 1

    def __init__(self, encoder: ResNet, width: int) -> None:
        super().__init__()
        self.encoder, self.predictor, self.dim = encoder, None, width
        self._labels: torch.Tensor | None = None

    def prepare(self, info: TrainingInfo) -> None:
        """Create the layer from torch's current random state on the CPU, which is equal in all processes."""
        like, initial = next(self.encoder.parameters()), nn.Linear(self.dim, info.num_classes)
        self.classifier = nn.Linear(self.dim, info.num_classes, device=like.device, dtype=like.dtype)
        self.classifier.load_state_dict(initial.state_dict())

    def before_step(self, iteration: int, batch: Batch) -> None:
        """Store the batch's labels."""
        self._labels = batch.labels

    def forward(self, *views: torch.Tensor) -> MethodOutput:
        """Mean cross-entropy."""
        assert self._labels is not None, "before_step() must be called before the forward pass"
        features = self.encoder(views[0])
        logits = full_precision(self.classifier(features))
        correct = topk_correct(logits, self._labels)
        accuracies = {f"train_{name}": 100 * count / len(logits) for name, count in correct.items()}
        return MethodOutput(F.cross_entropy(logits, self._labels), features.detach(), accuracies)


def check(cfg: CfgNode) -> None:
    """Raise UserError for a key that only a method with heads or two views reads."""
    reject_unused_keys(cfg, UNUSED_KEYS)


def build(cfg: CfgNode) -> Supervised:
    """The encoder from the MODEL keys; `prepare` adds the layer."""
    return Supervised(*build_encoder(cfg.MODEL.ARCH, cfg.MODEL.ZERO_INIT_RESIDUAL))
