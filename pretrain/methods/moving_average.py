"""SimSiam without a predictor, on targets that are averaged over an image's views (arXiv 2011.10566, section 5.2).

The predictor is presumed to stand for the expectation over augmentations that SimSiam's assignment of η leaves out.
Here a moving average over the epochs approximates it, one η for each image of the training set:

    η_x ← m·η_x + (1 − m)·F_θ(T'(x)),    L = D(F_θ(T(x)), η_x).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fvcore.common.config import CfgNode

from common.errors import UserError
from pretrain.data.dataset import Batch
from pretrain.methods.base import Course, full_precision
from pretrain.methods.parts.gather import gathered
from pretrain.methods.simsiam import SimSiam, arguments, check_values
from pretrain.rules import must_keep_default


class MovingAverage(SimSiam):
    """SimSiam against a memory bank of moving averages.

    The paper gives m = 0.8 and no more. Inferred: each term of the loss meets η moved by that term's own target view,
    so that with two views z1 is compared with m·η + (1 − m)·z2 and z2 with m·η + (1 − m)·z1, and the bank keeps the
    mean of the two; outputs enter as they are, not normalised to unit length; and `random` start. With `first` the
    first epoch is SimSiam without predictor, which collapses; the paper likens its bank to that of Wu et al. (2018),
    which starts at random.

    Memory: every process holds the whole bank, images × d floats, and so does each checkpoint: 10.5 GB for ImageNet at
    d = 2048. It is indexed by the image's place in the folder index, and each step's rows are gathered from all
    processes, so any number of them holds the same.

    Args:
        momentum: m.
        start: what η is before the image is first seen: `random`, normal numbers as the output BN's are; or `first`,
            the first output takes its place.
        simsiam: the arguments of `SimSiam`, its predictor None.
    """

    bank: torch.Tensor
    seen: torch.Tensor

    def __init__(self, momentum: float, start: str, **simsiam: Any) -> None:
        super().__init__(**simsiam)
        self.momentum, self.start = momentum, start
        self._indices: torch.Tensor | None = None

    def prepare(self, course: Course) -> None:
        """Make the bank, from torch's current random state, which is the same on all processes."""
        like = next(self.parameters())
        draw = torch.randn if self.start == "random" else torch.zeros
        self.register_buffer("bank", draw(course.images, self.dim, device=like.device, dtype=like.dtype))
        self.register_buffer("seen", torch.full((course.images, 1), self.start == "random", device=like.device))

    def before_step(self, iteration: int, batch: Batch) -> None:
        """Take down which images the batch holds."""
        self._indices = batch.indices.to(self.bank.device, non_blocking=True)

    @torch.no_grad()
    def targets(self, z: Mapping[int, torch.Tensor]) -> list[torch.Tensor]:
        """η of each term, moved by its target view; the bank takes their mean."""
        assert self._indices is not None, "before_step() comes before the forward pass"
        eta, known = self.bank[self._indices], self.seen[self._indices]
        new = [full_precision(z[j]).to(eta.dtype) for _, j in self.pairs]
        moved = [torch.where(known, torch.lerp(view, eta, self.momentum), view) for view in new]
        self._store(self._indices, torch.stack(moved).mean(0))
        return moved

    def _store(self, indices: torch.Tensor, rows: torch.Tensor) -> None:
        """Write the rows of all processes into the bank. No image is twice in a batch, so their order is no matter."""
        indices, rows = gathered(indices), gathered(rows)
        self.bank[indices] = rows
        self.seen[indices] = True


READS = ("SIMSIAM",)
"""Sections of the config."""


def check(cfg: CfgNode) -> None:
    """Raise UserError for what moving averages cannot do with: they are constants, kept, and need no predictor."""
    check_values(cfg)
    steps = ["SIMSIAM.ALTERNATION_STEPS"]
    must_keep_default(cfg, steps, "METHOD moving_average does not read it; alternation does")
    fixed = ["SIMSIAM.STOP_GRADIENT", "SIMSIAM.TARGET_MOMENTUM", "ENGINE.COMPILE"]
    must_keep_default(cfg, fixed, "with METHOD moving_average it must be {default!r}")
    if cfg.MODEL.PREDICTOR != "none":
        raise UserError(f"MODEL.PREDICTOR is {cfg.MODEL.PREDICTOR!r}; METHOD moving_average has none: set it to none")


def build(cfg: CfgNode) -> MovingAverage:
    """SimSiam as the MODEL and SIMSIAM keys spell it, on averaged targets."""
    return MovingAverage(cfg.SIMSIAM.AVERAGE_MOMENTUM, cfg.SIMSIAM.AVERAGE_START, **arguments(cfg))
