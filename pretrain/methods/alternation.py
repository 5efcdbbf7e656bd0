"""SimSiam as alternating optimization: k steps of SGD on targets of a frozen network (arXiv 2011.10566, section 5.2).

SimSiam minimizes E‖F_θ(T(x)) − η_x‖² alternately over θ and the η. With k steps per turn,

    η_x ← F_θᵗ(T'(x))    for all samples x of the next k steps, then
    θᵗ⁺¹                 by k steps of SGD on D(h(F_θ(T(x))), η_x).

With k = 1 this is SimSiam.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pretrain.data.dataset import Batch
from pretrain.methods.base import TrainingInfo
from pretrain.methods.simsiam import SimSiam, check_values, simsiam_arguments
from pretrain.rules import reject_unused_keys

LOG_SECONDS = 30.0
"""Seconds between two lines about the progress of a long assignment."""

_log = logging.getLogger(__name__)


class Alternation(SimSiam):
    """SimSiam whose targets come from θᵗ, the network at the first step of the period.

    θᵗ is a second encoder and projector that is never trained, and is in the state dict. The targets are not: they are
    cached in host memory, and a run resumed within a period recomputes those of the remaining steps from θᵗ and the
    same views. Each target equals the output in a step of SimSiam: it is normalized with the statistics of its own
    view's batch (over all processes if those of f are). θᵗ has no running statistics; those of f see each view once.

    Memory: k × batch × (targets per image) × d floats over all processes; an epoch of ImageNet at d = 2048 with the
    symmetric loss is 1.28 M × 2 × 8 KiB = 21 GB. Time: one more forward pass for each view that is a target, and each
    image is decoded twice.

    Args:
        steps: k; 0 for an epoch.
        simsiam: arguments of `SimSiam`.
    """

    def __init__(self, steps: int, **simsiam: Any) -> None:
        super().__init__(**simsiam)
        self.frozen = _without_statistics(copy.deepcopy(nn.Sequential(self.encoder, self.projector)))
        self.steps = steps
        self._info: TrainingInfo | None = None
        self._upcoming: Iterator[Batch] | None = None
        self._cache: dict[int, list[torch.Tensor]] = {}
        self._assigned: list[torch.Tensor] = []

    def prepare(self, info: TrainingInfo) -> None:
        """Store the length of an epoch, and how to load the batches of later steps."""
        self._info, self._upcoming = info, None
        self._cache.clear()

    def before_step(self, iteration: int, batch: Batch) -> None:
        """Assign η for the whole period at its first step, and select this step's targets."""
        assert self._info is not None, "prepare() must be called before the first step"
        period = self.steps or self._info.steps_per_epoch
        if iteration % period == 0:
            self._freeze()
        if iteration not in self._cache:
            end = min(iteration - iteration % period + period, self._info.total_steps)
            self._assign(iteration, end)
        self._assigned = [target.to(batch.views[0].device, non_blocking=True) for target in self._cache.pop(iteration)]

    def targets(self, z: Mapping[int, torch.Tensor]) -> list[torch.Tensor]:
        """η of this step's samples."""
        return self._assigned

    @torch.no_grad()
    def _freeze(self) -> None:
        """θᵗ ← θ."""
        online = nn.Sequential(self.encoder, self.projector)
        for old, new in zip(self.frozen.parameters(), online.parameters(), strict=True):
            old.copy_(new)

    @torch.no_grad()
    def _assign(self, first: int, end: int) -> None:
        """η_x ← F_θᵗ(T'(x)) for the samples and views of steps `first` … `end` − 1."""
        assert self._info is not None
        if self._upcoming is None:
            self._upcoming = self._info.batches(first)
        start = logged = time.monotonic()
        for iteration in range(first, end):
            views = next(self._upcoming).views
            self._cache[iteration] = [self.frozen(views[j]).cpu() for _, j in self.pairs]
            if time.monotonic() - logged > LOG_SECONDS:
                logged, done, count = time.monotonic(), iteration + 1 - first, end - first
                left = (logged - start) / done * (count - done)
                _log.info("targets of %d of the next %d steps computed, %.0f s to go", done, count, left)


def _without_statistics(network: nn.Sequential) -> nn.Sequential:
    """Freeze a network and remove the running statistics of its batch normalizations."""
    network.requires_grad_(False)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return network


CONFIG_SECTIONS = ("SIMSIAM",)


def check(cfg: CfgNode) -> None:
    """Raise UserError for values that alternation does not support: targets are cached constants of whole batches."""
    check_values(cfg)
    averages = ["SIMSIAM.AVERAGE_MOMENTUM", "SIMSIAM.AVERAGE_START"]
    reject_unused_keys(cfg, averages, "METHOD alternation does not read it; moving_average does")
    fixed = ["SIMSIAM.STOP_GRADIENT", "SIMSIAM.TARGET_MOMENTUM", "SOLVER.GRAD_ACCUM_STEPS", "ENGINE.COMPILE"]
    reject_unused_keys(cfg, fixed, "with METHOD alternation it must be {default!r}")


def build(cfg: CfgNode) -> Alternation:
    """SimSiam from the MODEL and SIMSIAM keys, with SIMSIAM.ALTERNATION_STEPS steps per assignment."""
    return Alternation(cfg.SIMSIAM.ALTERNATION_STEPS, **simsiam_arguments(cfg))
