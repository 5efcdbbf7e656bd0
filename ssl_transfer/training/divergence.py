"""Divergence: the exception that ends a run whose numbers are no longer usable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Diverged(Exception):
    """A loss, gradient, weight or prediction is not finite or exceeds its limit.

    Args:
        what: which value, and what it is.
        iteration: at which iteration, if known.
        lrs: the learning rates of the optimizer's parameter groups at that iteration.
    """

    def __init__(self, what: str, iteration: int | None = None, lrs: Sequence[float] = ()) -> None:
        rates = ", ".join(f"{lr:.6g}" for lr in lrs)
        super().__init__(what if iteration is None else f"{what} at iteration {iteration}, learning rate {rates}")
        self.what, self.iteration, self.lrs = what, iteration, tuple(lrs)

    def record(self) -> dict[str, Any]:
        """`iteration`, `lr` (of the first parameter group) and `what`, as results store them."""
        return {"iteration": self.iteration, "lr": self.lrs[0] if self.lrs else None, "what": self.what}
