"""A run that diverges: found on every rank in the same step, before anything is updated with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor, nn


class Diverged(Exception):
    """A loss or a prediction is no longer finite; the message says which and what it is."""


class Watched(nn.Module):
    """A detector whose losses are looked at in every training step.

    Args:
        model: the detector, or its DistributedDataParallel.
        rpn_head: the detector's RPN head. Detectron2 refuses proposals that are not finite on the rank that has
        them, and
            the other ranks would wait for it for ever; so all of them look before.
    """

    def __init__(self, model: nn.Module, rpn_head: nn.Module) -> None:
        super().__init__()
        self.model = model
        rpn_head.register_forward_hook(self._look_at_proposals)

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The detector's losses.

        Raises:
            Diverged: on every rank, when one of them has a loss that is not finite.
        """
        try:
            losses = self.model(batch)
        except FloatingPointError as error:
            raise Diverged("the proposals are not finite") from error
        if self.training:
            require_finite(losses)
        return losses

    def _look_at_proposals(self, head: nn.Module, _inputs: Any, outputs: tuple[list[Tensor], list[Tensor]]) -> None:
        if head.training:
            logits, deltas = outputs
            require_finite({"the RPN's objectness": _sum(logits), "the RPN's box deltas": _sum(deltas)})


def _sum(tensors: list[Tensor]) -> Tensor:
    """One number that is finite where all of `tensors` are (the magnitudes are far from overflow)."""
    return torch.stack([tensor.detach().float().sum() for tensor in tensors]).sum()


def require_finite(values: Mapping[str, Tensor]) -> None:
    """Raise on every rank when a value (scalar tensor) is NaN or infinite on one of them.

    Raises:
        Diverged: names the first such value and what it is.
    """
    stacked = torch.stack([value.detach().float() for value in values.values()])
    found = torch.stack([torch.isnan(stacked), torch.isinf(stacked)]).float()
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(found)
    if not found.any():
        return
    nan, inf = found.bool().tolist()
    for index, name in enumerate(values):
        if nan[index] or inf[index]:
            raise Diverged(f"{name} is {'NaN' if nan[index] else 'infinite'}")
