"""Supervised classification: the rival that has labels.

One view, the encoder, one linear layer, cross-entropy: the usual ImageNet training (arXiv 1706.02677, section 5.1;
pytorch/examples imagenet/main.py).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import nn
from torchvision.models import ResNet

from pretrain.data.dataset import Batch
from pretrain.methods.base import Course, Method, Output, full_precision
from pretrain.methods.parts.topk import hits
from pretrain.models.encoder import build_encoder
from pretrain.rules import must_keep_default

NEEDS_LABELS = True

UNREAD = (
    *("MODEL.PROJ_LAYERS", "MODEL.PROJ_HIDDEN", "MODEL.DIM", "MODEL.PRED_DIM", "MODEL.PREDICTOR", "MODEL.HEAD_BN"),
    *("MODEL.PROJ_BN_AFFINE", "SOLVER.FIX_PRED_LR", "AUGMENT.SECOND.BLUR_PROB", "AUGMENT.SECOND.SOLARIZE_PROB"),
)
"""Keys of heads and second views, of which it has none."""


class Supervised(Method):
    """A classifier; its layer is made when the run is known, with an output for each class of the training set.

    The layer starts as torch initialises it. `Output.metrics` has `train_top1` and `train_top5` in per cent.

    Args:
        encoder: gives features (N, width).
        width: d, too: the collapse monitor watches the features.
    """

    classifier: nn.Linear
    views = 1

    def __init__(self, encoder: ResNet, width: int) -> None:
        super().__init__()
        self.encoder, self.predictor, self.dim = encoder, None, width
        self._labels: torch.Tensor | None = None

    def prepare(self, course: Course) -> None:
        """Make the layer, from torch's current random state on the CPU, which is the same on all processes."""
        like, start = next(self.encoder.parameters()), nn.Linear(self.dim, course.classes)
        self.classifier = nn.Linear(self.dim, course.classes, device=like.device, dtype=like.dtype)
        self.classifier.load_state_dict(start.state_dict())

    def before_step(self, iteration: int, batch: Batch) -> None:
        """Take down the batch's labels."""
        self._labels = batch.labels

    def forward(self, *views: torch.Tensor) -> Output:
        """The mean cross-entropy of the labels."""
        assert self._labels is not None, "before_step() comes before the forward pass"
        features = self.encoder(views[0])
        logits = full_precision(self.classifier(features))
        shares = {f"train_{name}": 100 * count / len(logits) for name, count in hits(logits, self._labels).items()}
        return Output(F.cross_entropy(logits, self._labels), features.detach(), shares)


def check(cfg: CfgNode) -> None:
    """Raise UserError for a key that only a method with heads or two views reads."""
    must_keep_default(cfg, UNREAD)


def build(cfg: CfgNode) -> Supervised:
    """The encoder that the MODEL keys spell, the layer still to come."""
    return Supervised(*build_encoder(cfg.MODEL.ARCH, cfg.MODEL.ZERO_INIT_RESIDUAL))
