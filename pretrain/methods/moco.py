"""MoCo v2: contrast a query with its key and a queue of older keys (arXiv 1911.05722 and 2003.04297).

The defaults are those of the released code (facebookresearch/moco). The loss is symmetrized as in the SimSiam paper's
reproduction, in the form of the same authors' CIFAR notebook (colab/moco_cifar10_demo.ipynb): each view is the query
once, the two losses are added, and the keys of both enter the queue.
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import nn
from torchvision.models import ResNet

from pretrain.data.dataset import Batch
from pretrain.methods.base import Method, MethodOutput, TrainingInfo, l2_normalize, section_arguments
from pretrain.methods.parts.momentum import FeatureQueue, forward_with_shuffle_bn, momentum_copy, update_ema
from pretrain.models.heads import build_encoder_and_projector
from pretrain.rules import Rule, check_choices, check_rules
from ssl_transfer.errors import UserError
from ssl_transfer.training.collectives import is_distributed

_log = logging.getLogger(__name__)

LOSS_TERMS: dict[str, tuple[tuple[tuple[int, int], ...], float]] = {
    "symmetric": (((0, 1), (1, 0)), 1.0),
    "symmetric_mean": (((0, 1), (1, 0)), 0.5),
    "asymmetric": (((0, 1),), 1.0),
}
"""Values of MOCO.SYMMETRY: the views that are query and key of each term, and the terms' weight."""


class MoCo(Method):
    """Momentum contrast: the query's encoder is trained, the key's is its exponential moving average.

    Args:
        encoder: maps images to features (N, width).
        projector: (N, width) → (N, dim).
        dim: width of queries and keys.
        queue_size: number of negative keys that a query is contrasted with.
        momentum: m of the key encoder.
        temperature: τ.
        symmetry: one of `LOSS_TERMS`.
        shuffle: whether keys are computed with shuffling BN, for batch normalization over each process's images, or
            over groups of them.
        grouped: whether batch normalization uses groups. With a single process, shuffling is skipped without groups,
            as it would have no effect.
    """

    def __init__(
        self,
        encoder: ResNet,
        projector: nn.Module,
        dim: int,
        *,
        queue_size: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.2,
        symmetry: str = "symmetric",
        shuffle: bool = True,
        grouped: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.projector, self.predictor, self.dim = encoder, projector, None, dim
        self.target_encoder, self.target_projector = momentum_copy(encoder), momentum_copy(projector)
        self.queue = FeatureQueue(queue_size, dim)
        self.momentum, self.temperature = momentum, temperature
        self.shuffle, self.grouped = shuffle, grouped
        self.pairs, self.weight = LOSS_TERMS[symmetry]
        self._keys: list[torch.Tensor] = []
        self._updated_at = -1

    def prepare(self, info: TrainingInfo) -> None:
        """Warn if shuffling has no effect."""
        if self.shuffle and not self._is_shuffled():
            _log.warning(
                "MOCO.SHUFFLE has no effect with one process: a query and its key are normalized with the same images; "
                "set MODEL.BN_GROUP_SIZE below the batch size to shuffle between groups"
            )

    def before_step(self, iteration: int, batch: Batch) -> None:
        """Update the key encoder once per step, before its keys are computed."""
        if iteration != self._updated_at:
            update_ema(self.target_encoder, self.encoder, self.momentum)
            update_ema(self.target_projector, self.projector, self.momentum)
            self._updated_at = iteration
            self._keys.clear()

    def forward(self, *views: torch.Tensor) -> MethodOutput:
        """InfoNCE of each query with its key and the queue, summed over the terms."""
        outputs = [self.projector(self.encoder(views[i])) for i, _ in self.pairs]
        with torch.no_grad():
            keys = [self._key(views[j]) for _, j in self.pairs]
        terms = [
            info_nce(l2_normalize(output), key, self.queue.keys, self.temperature)
            for output, key in zip(outputs, keys, strict=True)
        ]
        self._keys += reversed(keys)  # the first view's keys come first
        return MethodOutput(self.weight * torch.stack(terms).sum(), outputs[0].detach())

    def after_backward(self, iteration: int) -> None:
        """Enqueue the keys of the step, of all its parts and all processes."""
        self.queue.enqueue(torch.cat(self._keys))
        self._keys.clear()

    def _is_shuffled(self) -> bool:
        return self.shuffle and (self.grouped or is_distributed())

    def _key(self, view: torch.Tensor) -> torch.Tensor:
        return forward_with_shuffle_bn(self._encode_key, view) if self._is_shuffled() else self._encode_key(view)

    def _encode_key(self, view: torch.Tensor) -> torch.Tensor:
        return l2_normalize(self.target_projector(self.target_encoder(view)))


def info_nce(q: torch.Tensor, k: torch.Tensor, negatives: torch.Tensor, temperature: float) -> torch.Tensor:
    """−log softmax of a query's similarity with its own key among those with all keys, averaged over the queries.

    Args:
        q, k: (N, dim) unit vectors; equal rows are a pair.
        negatives: (K, dim) unit vectors.
        temperature: τ, the divisor of the cosines.
    """
    with torch.autocast(q.device.type, enabled=False):  # keeps the products in full precision
        cosines = torch.cat([(q * k).sum(1, keepdim=True), q @ negatives.T], dim=1)
    return F.cross_entropy(cosines / temperature, torch.zeros(len(q), dtype=torch.int64, device=q.device))


def keys() -> CfgNode:
    """MoCo's config section."""
    node = CfgNode()
    # Number of keys in the queue: a multiple of the keys that a step adds.
    node.QUEUE_SIZE = 65536
    # m: momentum of the key encoder, an exponential moving average of the query encoder.
    node.MOMENTUM = 0.999
    # τ.
    node.TEMPERATURE = 0.2
    # The loss: symmetric (each view is the query once, the sum of both, as in MoCo's CIFAR notebook), symmetric_mean
    # (half of that, as in solo-learn's MoCo V2+), or asymmetric (the first view is the query, as in the released code).
    node.SYMMETRY = "symmetric"
    # Whether keys are computed on batches shuffled between processes, each with its own batch normalization
    # (MODEL.SYNC_BN False), as in the released code, or between the groups of MODEL.BN_GROUP_SIZE. The alternative:
    # False, and MODEL.SYNC_BN True.
    node.SHUFFLE = True
    return node


def check(cfg: CfgNode) -> None:
    """Raise UserError for values that MoCo does not support."""
    check_choices(cfg, {"MOCO.SYMMETRY": tuple(LOSS_TERMS)})
    size: Rule = ("MOCO.QUEUE_SIZE", lambda v: v >= 1, "1 or more")
    momentum: Rule = ("MOCO.MOMENTUM", lambda v: 0 <= v < 1, "at least 0 and below 1")
    temperature: Rule = ("MOCO.TEMPERATURE", lambda v: v > 0, "above 0")
    check_rules(cfg, (size, momentum, temperature))
    pairs, _ = LOSS_TERMS[cfg.MOCO.SYMMETRY]
    added = cfg.SOLVER.BATCH_SIZE * len(pairs)
    if cfg.MOCO.QUEUE_SIZE % added:
        both = " of two views each" if len(pairs) > 1 else ""
        raise UserError(
            f"MOCO.QUEUE_SIZE is {cfg.MOCO.QUEUE_SIZE}; it must be a multiple of the {added} keys that a step adds "
            f"(SOLVER.BATCH_SIZE {cfg.SOLVER.BATCH_SIZE}{both}, MOCO.SYMMETRY {cfg.MOCO.SYMMETRY})"
        )
    if cfg.MOCO.SHUFFLE and cfg.MODEL.SYNC_BN:
        raise UserError("MOCO.SHUFFLE True has no effect with MODEL.SYNC_BN True: set one of the two to False")
    if cfg.MODEL.PREDICTOR != "none":
        raise UserError(f"MODEL.PREDICTOR is {cfg.MODEL.PREDICTOR!r}; METHOD moco has none: set it to none")


def build(cfg: CfgNode) -> MoCo:
    """MoCo from the MODEL and MOCO keys, initialized in the order encoder, projector, queue."""
    encoder, projector = build_encoder_and_projector(cfg.MODEL)
    grouped = 0 < cfg.MODEL.BN_GROUP_SIZE < cfg.SOLVER.BATCH_SIZE // cfg.SOLVER.GRAD_ACCUM_STEPS
    return MoCo(encoder, projector, cfg.MODEL.DIM, grouped=grouped, **section_arguments(cfg.MOCO))
