"""SimSiam as an alternation: k steps of SGD against targets of a frozen network (arXiv 2011.10566, section 5.2).

SimSiam minimises E‖F_θ(T(x)) − η_x‖² over θ and the η in turn. Where the turns are k steps long,

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
from pretrain.methods.base import Course
from pretrain.methods.simsiam import SimSiam, arguments, check_values
from pretrain.rules import must_keep_default

SECONDS_A_LINE = 30.0
"""Between two lines that say how far a long period's targets are."""

_log = logging.getLogger(__name__)


class Alternation(SimSiam):
    """SimSiam whose targets come from θᵗ, the network as it was at the period's first step.

    θᵗ is a second encoder and projector that is never trained; it is part of the state dict. The targets are not: they
    wait in host memory, and a run that is resumed within a period computes those of the steps that are left anew, from
    θᵗ and the same views. Each target is the output of a step of SimSiam: normalised with the statistics of its own
    view's batch (over all processes where f's are). θᵗ keeps no running statistics, and f's own see each view once.

    Memory: k × batch × (targets an image) × d floats over all processes; an epoch of ImageNet at d = 2048 with the
    symmetric loss is 1.28 M × 2 × 8 KiB = 21 GB. Time: a forward pass more for each view that is a target, and each
    image is decoded twice.

    Args:
        steps: k; 0 is an epoch.
        simsiam: the arguments of `SimSiam`.
    """

    def __init__(self, steps: int, **simsiam: Any) -> None:
        super().__init__(**simsiam)
        self.frozen = _without_statistics(copy.deepcopy(nn.Sequential(self.encoder, self.projector)))
        self.steps = steps
        self._course: Course | None = None
        self._upcoming: Iterator[Batch] | None = None
        self._cache: dict[int, list[torch.Tensor]] = {}
        self._assigned: list[torch.Tensor] = []

    def prepare(self, course: Course) -> None:
        """Take the run's course: how long an epoch is, and where the batches of the steps to come are found."""
        self._course, self._upcoming = course, None
        self._cache.clear()

    def before_step(self, iteration: int, batch: Batch) -> None:
        """Assign η for the whole period at its first step, and lay out this step's."""
        assert self._course is not None, "prepare() comes before the first step"
        period = self.steps or self._course.steps_per_epoch
        if iteration % period == 0:
            self._freeze()
        if iteration not in self._cache:
            end = min(iteration - iteration % period + period, self._course.total)
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
        """η_x ← F_θᵗ(T'(x)) for the samples and views of the steps from `first` to before `end`."""
        assert self._course is not None
        if self._upcoming is None:
            self._upcoming = self._course.batches(first)
        begun = said = time.monotonic()
        for iteration in range(first, end):
            views = next(self._upcoming).views
            self._cache[iteration] = [self.frozen(views[j]).cpu() for _, j in self.pairs]
            if time.monotonic() - said > SECONDS_A_LINE:
                said, done, count = time.monotonic(), iteration + 1 - first, end - first
                left = (said - begun) / done * (count - done)
                _log.info("targets of %d of the next %d steps computed, %.0f s to go", done, count, left)


def _without_statistics(network: nn.Sequential) -> nn.Sequential:
    """A network that is not trained and whose batch normalisations keep no running statistics."""
    network.requires_grad_(False)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return network


READS = ("SIMSIAM",)
"""Sections of the config."""


def check(cfg: CfgNode) -> None:
    """Raise UserError for what alternation cannot do with: its targets are constants, of whole batches, kept."""
    check_values(cfg)
    averages = ["SIMSIAM.AVERAGE_MOMENTUM", "SIMSIAM.AVERAGE_START"]
    must_keep_default(cfg, averages, "METHOD alternation does not read it; moving_average does")
    fixed = ["SIMSIAM.STOP_GRADIENT", "SIMSIAM.TARGET_MOMENTUM", "SOLVER.ACCUMULATE", "ENGINE.COMPILE"]
    must_keep_default(cfg, fixed, "with METHOD alternation it must be {default!r}")


def build(cfg: CfgNode) -> Alternation:
    """SimSiam as the MODEL and SIMSIAM keys spell it, in turns of SIMSIAM.ALTERNATION_STEPS."""
    return Alternation(cfg.SIMSIAM.ALTERNATION_STEPS, **arguments(cfg))
