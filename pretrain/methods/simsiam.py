"""SimSiam: two views, one network, a predictor and a stop-gradient (arXiv 2011.10566, section 3 and algorithm 1).

The defaults are the released code's; the ablations of section 4 are arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torchvision.models import ResNet

from common.errors import UserError
from pretrain.methods.base import Course, Method, Output
from pretrain.methods.parts.momentum import follow, untrained_copy
from pretrain.methods.similarity import SIMILARITIES, negative_cosine
from pretrain.models.encoder import build_encoder
from pretrain.models.heads import optional_predictor, projector
from pretrain.optim.momentum_schedule import cosine_momentum
from pretrain.rules import Rule, must_be_named, must_hold, must_keep_default

PAIRS = {
    "symmetric": ((0, 1), (1, 0)),
    "asymmetric": ((0, 1),),
    "asymmetric_2x": ((0, 1), (2, 3)),
}
"""The values of SIMSIAM.SYMMETRY: which view is predicted from which, as (i, j) of D(p_i, z_j) (section 4.6).

The paper's "2×" samples two pairs of views an image. That the two are averaged, and that each view is normalised with
its own batch's statistics as everywhere else in the released code, is inferred.
"""


class SimSiam(Method):
    """The siamese network: f is encoder and projector, h the predictor.

    Args:
        encoder: gives features (N, width).
        projector: the rest of f, (N, width) → (N, d).
        predictor: h, (N, d) → (N, d); None is the identity.
        dim: d.
        pairs: the terms of the loss, one of `PAIRS`.
        similarity: D(p, z), a scalar.
        stop_gradient: whether the targets are constants.
        target_momentum: m at the first step of a second f that gives the targets and follows f after each step, as
            BYOL's does: m rises to 1 along half a cosine. 0: there is no second f, the weights are shared.
    """

    def __init__(
        self,
        encoder: ResNet,
        projector: nn.Module,
        predictor: nn.Module | None,
        dim: int,
        pairs: Sequence[tuple[int, int]] = PAIRS["symmetric"],
        similarity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = negative_cosine,
        stop_gradient: bool = True,
        target_momentum: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder, self.projector, self.predictor = encoder, projector, predictor
        self.dim, self.pairs, self.views = dim, tuple(pairs), 1 + max(max(pair) for pair in pairs)
        self.similarity, self.stop_gradient = similarity, stop_gradient
        self.target_momentum = target_momentum
        if target_momentum:
            self.target_encoder, self.target_projector = untrained_copy(encoder), untrained_copy(projector)
        self._total: int | None = None

    def prepare(self, course: Course) -> None:
        """Take the run's length, over which the targets' momentum rises."""
        self._total = course.total

    def forward(self, *views: torch.Tensor) -> Output:
        """L = ½ D(p1, stopgrad(z2)) + ½ D(p2, stopgrad(z1)), or the mean over the pairs there are."""
        z = {i: self.projector(self.encoder(x)) for i, x in enumerate(views)}
        p = {i: z[i] if self.predictor is None else self.predictor(z[i]) for i, _ in self.pairs}
        targets = self.targets(self._followed(views) if self.target_momentum else z)
        terms = [self.similarity(p[i], target) for (i, _), target in zip(self.pairs, targets, strict=True)]
        return Output(torch.stack(terms).mean(), z[0].detach())

    def targets(self, z: Mapping[int, torch.Tensor]) -> list[torch.Tensor]:
        """What each pair's prediction is compared with: the other view's output, as a constant."""
        return [z[j].detach() if self.stop_gradient else z[j] for _, j in self.pairs]

    def after_step(self, iteration: int) -> None:
        """Let the second f follow, where there is one."""
        if self.target_momentum:
            assert self._total is not None, "prepare() comes before the first step"
            momentum = cosine_momentum(self.target_momentum, iteration, self._total)
            follow(self.target_encoder, self.encoder, momentum)
            follow(self.target_projector, self.projector, momentum)

    @torch.no_grad()
    def _followed(self, views: Sequence[torch.Tensor]) -> dict[int, torch.Tensor]:
        """The second f's output for each view that is a target."""
        return {j: self.target_projector(self.target_encoder(views[j])) for j in sorted({j for _, j in self.pairs})}


def keys() -> CfgNode:
    """SimSiam's ablations (docs/guides/pretraining.md has each with its published number)."""
    node = CfgNode()
    # Whether the targets are constants.
    node.STOP_GRADIENT = True
    # SimSiam is "BYOL without the momentum encoder"; with it: the momentum at the first step of a second encoder and
    # projector that give the targets, rising to 1 as BYOL's does. 0 = none, the weights are shared.
    node.TARGET_MOMENTUM = 0.0
    # D(p, z): cosine (negative cosine similarity) or cross_entropy (of the softmax over channels).
    node.SIMILARITY = "cosine"
    # Which view is predicted from which: symmetric, asymmetric (the first view from the second), or asymmetric_2x (two
    # pairs of views an image).
    node.SYMMETRY = "symmetric"
    # METHOD alternation: steps between two assignments of the targets; 1 is SimSiam, 0 is an epoch.
    node.ALTERNATION_STEPS = 1
    # METHOD moving_average: the momentum of each image's target, and what it is before the image is first seen: random
    # (normal numbers) or first (nothing: the first output takes its place).
    node.AVERAGE_MOMENTUM = 0.8
    node.AVERAGE_START = "random"
    return node


def check(cfg: CfgNode) -> None:
    """Raise UserError for values of SIMSIAM that cannot be, or that another METHOD alone reads."""
    check_values(cfg)
    if cfg.SIMSIAM.TARGET_MOMENTUM and not cfg.SIMSIAM.STOP_GRADIENT:
        raise UserError(
            f"SIMSIAM.STOP_GRADIENT is False, but with SIMSIAM.TARGET_MOMENTUM {cfg.SIMSIAM.TARGET_MOMENTUM:g} the "
            "targets come from a network without gradient: set one of the two to its default"
        )
    must_keep_default(cfg, ["SIMSIAM.ALTERNATION_STEPS"], "METHOD simsiam does not read it; alternation does")
    averages = ["SIMSIAM.AVERAGE_MOMENTUM", "SIMSIAM.AVERAGE_START"]
    must_keep_default(cfg, averages, "METHOD simsiam does not read it; moving_average does")


def check_values(cfg: CfgNode) -> None:
    """Raise UserError for values of SIMSIAM that cannot be."""
    must_be_named(
        cfg,
        {
            "SIMSIAM.SIMILARITY": tuple(SIMILARITIES),
            "SIMSIAM.SYMMETRY": tuple(PAIRS),
            "SIMSIAM.AVERAGE_START": ("random", "first"),
        },
    )
    steps: Rule = ("SIMSIAM.ALTERNATION_STEPS", lambda v: v >= 0, "a number of steps, or 0 for an epoch")
    momentum: Rule = ("SIMSIAM.AVERAGE_MOMENTUM", lambda v: 0 <= v < 1, "at least 0 and below 1")
    target: Rule = ("SIMSIAM.TARGET_MOMENTUM", lambda v: 0 <= v <= 1, "a momentum (0 … 1), 0 for none")
    must_hold(cfg, (steps, momentum, target))


def build(cfg: CfgNode) -> SimSiam:
    """SimSiam as the MODEL and SIMSIAM keys spell it."""
    return SimSiam(**arguments(cfg))


def arguments(cfg: CfgNode) -> dict[str, Any]:
    """The arguments of `SimSiam`, networks freshly initialised in this order: encoder, projector, predictor."""
    model, simsiam = cfg.MODEL, cfg.SIMSIAM
    encoder, width = build_encoder(model.ARCH, model.ZERO_INIT_RESIDUAL)
    head = projector(width, model.PROJ_HIDDEN, model.DIM, model.PROJ_LAYERS, model.HEAD_BN, model.PROJ_BN_AFFINE)
    return {
        "encoder": encoder,
        "projector": head,
        "predictor": optional_predictor(model.PREDICTOR, model.DIM, model.PRED_DIM, model.HEAD_BN),
        "dim": model.DIM,
        "pairs": PAIRS[simsiam.SYMMETRY],
        "similarity": SIMILARITIES[simsiam.SIMILARITY],
        "stop_gradient": simsiam.STOP_GRADIENT,
        "target_momentum": simsiam.TARGET_MOMENTUM,
    }
