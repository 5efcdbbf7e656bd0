"""SimSiam: two views, one network, a predictor and a stop-gradient (arXiv 2011.10566, section 3 and algorithm 1).

The defaults are those of the released code; the ablations of section 4 are arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torchvision.models import ResNet

from pretrain.methods.base import Method, MethodOutput, TrainingInfo
from pretrain.methods.parts.losses import SIMILARITIES, negative_cosine
from pretrain.methods.parts.momentum import momentum_copy, update_ema
from pretrain.models.heads import build_encoder_and_projector, build_optional_predictor
from pretrain.optim.schedule import cosine_momentum
from pretrain.rules import Rule, check_choices, check_rules, reject_unused_keys
from ssl_transfer.errors import UserError

PAIRS = {"symmetric": ((0, 1), (1, 0)), "asymmetric": ((0, 1),), "asymmetric_2x": ((0, 1), (2, 3))}
"""Values of SIMSIAM.SYMMETRY: the pairs (i, j) of the loss terms D(p_i, z_j) (section 4.6).

The paper's "2×" samples two pairs of views of an image. Inferred: the two terms are averaged, and each view is
normalized with the statistics of its own batch, as everywhere else in the released code.
"""


class SimSiam(Method):
    """Siamese network: f is encoder and projector, h the predictor.

    Args:
        encoder: maps images to features (N, width).
        projector: the rest of f, (N, width) → (N, d).
        predictor: h, (N, d) → (N, d); None for the identity.
        dim: d.
        pairs: terms of the loss, one of `PAIRS`.
        similarity: D(p, z), a scalar.
        stop_gradient: whether gradients stop at the targets.
        target_momentum: momentum m, at the first step, of a target network: a second f, the exponential moving average
            of f, that computes the targets. As in BYOL, m rises to 1 along half a cosine. 0: no target network.
    """

    def __init__(
        self,
        encoder: ResNet,
        projector: nn.Module,
        predictor: nn.Module | None,
        dim: int,
        *,
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
            self.target_encoder, self.target_projector = momentum_copy(encoder), momentum_copy(projector)
        self._total_steps: int | None = None

    def prepare(self, info: TrainingInfo) -> None:
        """Store the length of the run, over which the target momentum rises."""
        self._total_steps = info.total_steps

    def forward(self, *views: torch.Tensor) -> MethodOutput:
        """L = ½ D(p1, stopgrad(z2)) + ½ D(p2, stopgrad(z1)), or the mean over the configured pairs."""
        z = {i: self.projector(self.encoder(x)) for i, x in enumerate(views)}
        p = {i: z[i] if self.predictor is None else self.predictor(z[i]) for i, _ in self.pairs}
        targets = self.targets(self._target_outputs(views) if self.target_momentum else z)
        terms = [self.similarity(p[i], target) for (i, _), target in zip(self.pairs, targets, strict=True)]
        return MethodOutput(torch.stack(terms).mean(), z[0].detach())

    def targets(self, z: Mapping[int, torch.Tensor]) -> list[torch.Tensor]:
        """The target of each pair's prediction: the other view's output, detached."""
        return [z[j].detach() if self.stop_gradient else z[j] for _, j in self.pairs]

    def after_step(self, iteration: int) -> None:
        """Update the target network, if there is one."""
        if self.target_momentum:
            assert self._total_steps is not None, "prepare() must be called before the first step"
            momentum = cosine_momentum(self.target_momentum, iteration, self._total_steps)
            update_ema(self.target_encoder, self.encoder, momentum)
            update_ema(self.target_projector, self.projector, momentum)

    @torch.no_grad()
    def _target_outputs(self, views: Sequence[torch.Tensor]) -> dict[int, torch.Tensor]:
        """The target network's output for each view that is a target."""
        return {j: self.target_projector(self.target_encoder(views[j])) for j in sorted({j for _, j in self.pairs})}


def keys() -> CfgNode:
    """Config section of SimSiam's ablations (docs/guides/pretraining.md lists each with its published number)."""
    node = CfgNode()
    # Whether gradients stop at the targets.
    node.STOP_GRADIENT = True
    # SimSiam is "BYOL without the momentum encoder"; this adds one: the momentum, at the first step, of a second
    # encoder and projector that compute the targets. It rises to 1 as in BYOL. 0 = none, the weights are shared.
    node.TARGET_MOMENTUM = 0.0
    # D(p, z): cosine (negative cosine similarity) or cross_entropy (of the softmax over channels).
    node.SIMILARITY = "cosine"
    # Which view predicts which: symmetric, asymmetric (the first predicts the second), or asymmetric_2x (two pairs of
    # views per image).
    node.SYMMETRY = "symmetric"
    # METHOD alternation: steps between two assignments of the targets; 1 is SimSiam, 0 is an epoch.
    node.ALTERNATION_STEPS = 1
    # METHOD moving_average: the momentum of each image's target, and its initial value: random (normal numbers) or
    # first (the first output).
    node.AVERAGE_MOMENTUM = 0.8
    node.AVERAGE_START = "random"
    return node


def check(cfg: CfgNode) -> None:
    """Raise UserError for invalid values of SIMSIAM, or for keys that only another METHOD reads."""
    check_values(cfg)
    if cfg.SIMSIAM.TARGET_MOMENTUM and not cfg.SIMSIAM.STOP_GRADIENT:
        raise UserError(
            f"SIMSIAM.STOP_GRADIENT is False, but with SIMSIAM.TARGET_MOMENTUM {cfg.SIMSIAM.TARGET_MOMENTUM:g} the "
            "targets come from a network without gradient: set one of the two to its default"
        )
    reject_unused_keys(cfg, ["SIMSIAM.ALTERNATION_STEPS"], "METHOD simsiam does not read it; alternation does")
    averages = ["SIMSIAM.AVERAGE_MOMENTUM", "SIMSIAM.AVERAGE_START"]
    reject_unused_keys(cfg, averages, "METHOD simsiam does not read it; moving_average does")


def check_values(cfg: CfgNode) -> None:
    """Raise UserError for invalid values of SIMSIAM."""
    check_choices(
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
    check_rules(cfg, (steps, momentum, target))


def build(cfg: CfgNode) -> SimSiam:
    """SimSiam from the MODEL and SIMSIAM keys."""
    return SimSiam(**simsiam_arguments(cfg))


def simsiam_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of `SimSiam`, with networks initialized in the order encoder, projector, predictor."""
    encoder, projector = build_encoder_and_projector(cfg.MODEL)
    return {
        "encoder": encoder,
        "projector": projector,
        "predictor": build_optional_predictor(cfg.MODEL),
        "dim": cfg.MODEL.DIM,
        "pairs": PAIRS[cfg.SIMSIAM.SYMMETRY],
        "similarity": SIMILARITIES[cfg.SIMSIAM.SIMILARITY],
        "stop_gradient": cfg.SIMSIAM.STOP_GRADIENT,
        "target_momentum": cfg.SIMSIAM.TARGET_MOMENTUM,
    }
