"""SimSiam without a predictor, on targets averaged over an image's views (arXiv 2011.10566, section 5.2).

The paper's hypothesis: the predictor approximates the expectation over augmentations that SimSiam's assignment of η
omits. Here a moving average over epochs approximates it, with one η for each image of the training set:

    η_x ← m·η_x + (1 − m)·F_θ(T'(x)),    L = D(F_θ(T(x)), η_x).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fvcore.common.config import CfgNode

from pretrain.data.dataset import Batch
from pretrain.methods.base import TrainingInfo, full_precision
from pretrain.methods.simsiam import SimSiam, check_values, simsiam_arguments
from pretrain.rules import reject_unused_keys
from ssl_transfer.errors import UserError
from ssl_transfer.training.collectives import all_gather


class MovingAverage(SimSiam):
    """SimSiam with a memory bank of moving averages as targets.

    The paper gives only m = 0.8. Inferred: each term of the loss uses η updated with that term's own target view, so
    with two views z1 is compared with m·η + (1 − m)·z2 and z2 with m·η + (1 − m)·z1, and the bank stores the mean of
    both; outputs are not scaled to unit length; and the `random` start. With `first`, the first epoch is SimSiam
    without predictor, which collapses; the paper compares its bank to that of Wu et al. (2018), which starts at random.

    Memory: every process stores the whole bank, images × d floats, and so does each checkpoint: 10.5 GB for ImageNet at
    d = 2048. Rows are indexed by the image's position in the image index, and each step's rows are gathered from all
    processes, so the bank does not depend on their number.

    Args:
        momentum: m.
        start: initial η of an image: `random`, normal numbers like outputs of the output BN; or `first`, the image's
            first output.
        simsiam: arguments of `SimSiam`, with predictor None.
    """

    bank: torch.Tensor
    seen: torch.Tensor

    def __init__(self, momentum: float, start: str, **simsiam: Any) -> None:
        super().__init__(**simsiam)
        self.momentum, self.start = momentum, start
        self._indices: torch.Tensor | None = None

    def prepare(self, info: TrainingInfo) -> None:
        """Create the bank from torch's current random state, which is equal in all processes."""
        like = next(self.parameters())
        init = torch.randn if self.start == "random" else torch.zeros
        self.register_buffer("bank", init(info.num_images, self.dim, device=like.device, dtype=like.dtype))
        self.register_buffer("seen", torch.full((info.num_images, 1), self.start == "random", device=like.device))

    def before_step(self, iteration: int, batch: Batch) -> None:
        """Store the indices of the batch's images."""
        self._indices = batch.indices.to(self.bank.device, non_blocking=True)

    @torch.no_grad()
    def targets(self, z: Mapping[int, torch.Tensor]) -> list[torch.Tensor]:
        """η of each term, updated with its target view; the bank stores their mean."""
        assert self._indices is not None, "before_step() must be called before the forward pass"
        eta, known = self.bank[self._indices], self.seen[self._indices]
        new = [full_precision(z[j]).to(eta.dtype) for _, j in self.pairs]
        updated = [torch.where(known, torch.lerp(view, eta, self.momentum), view) for view in new]
        self._store(self._indices, torch.stack(updated).mean(0))
        return updated

    def _store(self, indices: torch.Tensor, rows: torch.Tensor) -> None:
        """Write the rows of all processes; their order does not matter, as no image occurs twice in a batch."""
        indices, rows = all_gather(indices), all_gather(rows)
        self.bank[indices] = rows
        self.seen[indices] = True


CONFIG_SECTIONS = ("SIMSIAM",)


def check(cfg: CfgNode) -> None:
    """Raise UserError for values that moving averages do not support: targets are constants, without a predictor."""
    check_values(cfg)
    steps = ["SIMSIAM.ALTERNATION_STEPS"]
    reject_unused_keys(cfg, steps, "METHOD moving_average does not read it; alternation does")
    fixed = ["SIMSIAM.STOP_GRADIENT", "SIMSIAM.TARGET_MOMENTUM", "ENGINE.COMPILE"]
    reject_unused_keys(cfg, fixed, "with METHOD moving_average it must be {default!r}")
    if cfg.MODEL.PREDICTOR != "none":
        raise UserError(f"MODEL.PREDICTOR is {cfg.MODEL.PREDICTOR!r}; METHOD moving_average has none: set it to none")


def build(cfg: CfgNode) -> MovingAverage:
    """SimSiam from the MODEL and SIMSIAM keys, with averaged targets."""
    return MovingAverage(cfg.SIMSIAM.AVERAGE_MOMENTUM, cfg.SIMSIAM.AVERAGE_START, **simsiam_arguments(cfg))
