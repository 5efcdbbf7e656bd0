"""MoCo v2: a query against its key and a queue of older keys (arXiv 1911.05722 and 2003.04297).

The defaults are the released code's (facebookresearch/moco); the loss is symmetrised as in the SimSiam paper's
reproduction, whose form is that of the same authors' CIFAR notebook (colab/moco_cifar10_demo.ipynb): both views are
queries once, the two losses are added, and the keys of both go into the queue.
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import nn
from torchvision.models import ResNet

from common.errors import UserError
from pretrain.data.dataset import Batch
from pretrain.methods.base import Course, Method, Output, unit
from pretrain.methods.parts.gather import alone
from pretrain.methods.parts.momentum import follow, untrained_copy
from pretrain.methods.parts.queue import Queue
from pretrain.methods.parts.shuffle import on_shuffled
from pretrain.models.encoder import build_encoder
from pretrain.models.heads import projector
from pretrain.rules import Rule, must_be_named, must_hold

_log = logging.getLogger(__name__)

TERMS: dict[str, tuple[tuple[tuple[int, int], ...], float]] = {
    "symmetric": (((0, 1), (1, 0)), 1.0),
    "symmetric_mean": (((0, 1), (1, 0)), 0.5),
    "asymmetric": (((0, 1),), 1.0),
}
"""The values of MOCO.SYMMETRY: which view is the query and which the key of each term, and the terms' weight."""


class MoCo(Method):
    """Momentum contrast: the query's encoder is trained, the key's follows it.

    Args:
        encoder: gives features (N, width).
        projector: (N, width) → (N, dim).
        dim: width of queries and keys.
        queue_size: how many keys a query is told from, besides its own.
        momentum: m of the key encoder.
        temperature: τ.
        symmetry: one of `TERMS`.
        shuffle: whether keys are computed on shuffled batches, for batch normalisation that covers each process's
            images, or groups of them.
        grouped: whether it covers groups of a process's images. Without groups and with one process shuffling would
            change nothing, and is not done.
    """

    def __init__(
        self,
        encoder: ResNet,
        projector: nn.Module,
        dim: int,
        queue_size: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.2,
        symmetry: str = "symmetric",
        shuffle: bool = True,
        grouped: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.projector, self.predictor, self.dim = encoder, projector, None, dim
        self.target_encoder, self.target_projector = untrained_copy(encoder), untrained_copy(projector)
        self.queue = Queue(queue_size, dim)
        self.momentum, self.temperature = momentum, temperature
        self.shuffle, self.grouped = shuffle, grouped
        self.pairs, self.weight = TERMS[symmetry]
        self._keys: list[torch.Tensor] = []
        self._followed = -1

    def prepare(self, course: Course) -> None:
        """Say so where there is nobody to shuffle with."""
        if self.shuffle and not self._shuffles():
            said = "one process shuffles with nobody: a query and its key are normalised with the same images"
            _log.warning(f"{said}; MODEL.BN_IMAGES, below the batch, makes groups to shuffle between")

    def before_step(self, iteration: int, batch: Batch) -> None:
        """Let the key encoder follow the query's, once a step, before its keys are computed."""
        if iteration != self._followed:
            follow(self.target_encoder, self.encoder, self.momentum)
            follow(self.target_projector, self.projector, self.momentum)
            self._followed = iteration
            self._keys.clear()

    def forward(self, *views: torch.Tensor) -> Output:
        """InfoNCE of each query against its key and the queue, added up over the terms."""
        outputs = [self.projector(self.encoder(views[i])) for i, _ in self.pairs]
        with torch.no_grad():
            keys = [
                on_shuffled(self._key, views[j]) if self._shuffles() else self._key(views[j]) for _, j in self.pairs
            ]
        terms = [
            info_nce(unit(output), key, self.queue.keys, self.temperature)
            for output, key in zip(outputs, keys, strict=True)
        ]
        self._keys += reversed(keys)  # the first view's come first
        return Output(self.weight * torch.stack(terms).sum(), outputs[0].detach())

    def after_backward(self, iteration: int) -> None:
        """Put the step's keys, of all its parts and of all processes, into the queue."""
        self.queue.replace_oldest(torch.cat(self._keys))
        self._keys.clear()

    def _shuffles(self) -> bool:
        return self.shuffle and (self.grouped or not alone())

    def _key(self, view: torch.Tensor) -> torch.Tensor:
        return unit(self.target_projector(self.target_encoder(view)))


def info_nce(q: torch.Tensor, k: torch.Tensor, negatives: torch.Tensor, temperature: float) -> torch.Tensor:
    """−log softmax of the query's similarity with its own key among those with all keys, the mean over the queries.

    Args:
        q, k: (N, dim) of unit length, row by row a pair.
        negatives: (K, dim) of unit length.
        temperature: τ, by which the cosines are divided.
    """
    with torch.autocast(q.device.type, enabled=False):  # it would round the products to half precision
        cosines = torch.cat([(q * k).sum(1, keepdim=True), q @ negatives.T], dim=1)
    return F.cross_entropy(cosines / temperature, torch.zeros(len(q), dtype=torch.int64, device=q.device))


def keys() -> CfgNode:
    """MoCo's own."""
    node = CfgNode()
    # How many keys the queue holds: a multiple of those that a step adds.
    node.QUEUE_SIZE = 65536
    # m: how slowly the key encoder follows the query encoder.
    node.MOMENTUM = 0.999
    # τ.
    node.TEMPERATURE = 0.2
    # The loss: symmetric (each view is the query once, the two are added, as in MoCo's CIFAR notebook), symmetric_mean
    # (half of that, as solo-learn's MoCo V2+ has it), or asymmetric (the first view is the query, as released).
    node.SYMMETRY = "symmetric"
    # Whether keys are computed on batches shuffled between the processes, each normalising its own (MODEL.SYNC_BN
    # False), as released, or between the groups of MODEL.BN_IMAGES. The alternative: False, and MODEL.SYNC_BN True.
    node.SHUFFLE = True
    return node


def check(cfg: CfgNode) -> None:
    """Raise UserError for what MoCo cannot do with."""
    must_be_named(cfg, {"MOCO.SYMMETRY": tuple(TERMS)})
    size: Rule = ("MOCO.QUEUE_SIZE", lambda v: v >= 1, "1 or more")
    momentum: Rule = ("MOCO.MOMENTUM", lambda v: 0 <= v < 1, "at least 0 and below 1")
    temperature: Rule = ("MOCO.TEMPERATURE", lambda v: v > 0, "above 0")
    must_hold(cfg, (size, momentum, temperature))
    pairs, _ = TERMS[cfg.MOCO.SYMMETRY]
    added = cfg.SOLVER.BATCH_SIZE * len(pairs)
    if cfg.MOCO.QUEUE_SIZE % added:
        both = " of two views each" if len(pairs) > 1 else ""
        raise UserError(
            f"MOCO.QUEUE_SIZE is {cfg.MOCO.QUEUE_SIZE}; it must be a multiple of the {added} keys that a step adds "
            f"(SOLVER.BATCH_SIZE {cfg.SOLVER.BATCH_SIZE}{both}, MOCO.SYMMETRY {cfg.MOCO.SYMMETRY})"
        )
    if cfg.MOCO.SHUFFLE and cfg.MODEL.SYNC_BN:
        raise UserError(
            "MOCO.SHUFFLE is True, which changes nothing where MODEL.SYNC_BN is True: set one of the two to False"
        )
    if cfg.MODEL.PREDICTOR != "none":
        raise UserError(f"MODEL.PREDICTOR is {cfg.MODEL.PREDICTOR!r}; METHOD moco has none: set it to none")


def build(cfg: CfgNode) -> MoCo:
    """MoCo as the MODEL and MOCO keys spell it; encoder and head are initialised in this order, then the queue."""
    model, moco = cfg.MODEL, cfg.MOCO
    encoder, width = build_encoder(model.ARCH, model.ZERO_INIT_RESIDUAL)
    head = projector(width, model.PROJ_HIDDEN, model.DIM, model.PROJ_LAYERS, model.HEAD_BN, model.PROJ_BN_AFFINE)
    grouped = 0 < model.BN_IMAGES < cfg.SOLVER.BATCH_SIZE // cfg.SOLVER.ACCUMULATE
    queue = moco.QUEUE_SIZE, moco.MOMENTUM, moco.TEMPERATURE, moco.SYMMETRY
    return MoCo(encoder, head, model.DIM, *queue, moco.SHUFFLE, grouped)
