"""Training on a device beside the same training on the CPU: each step begins with the CPU's weights.

Left to itself a training drifts: of two that differ by rounding, the losses differ ten times as much with each step,
until after ten steps they tell nothing. Begun anew from the same weights, each of the steps can be held tightly, and so
can what it does to the weights: a learning rate that is wrong by 1 % changes every update by 1 %.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.workload import Steps

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Gap:
    """How far a device is from the CPU.

    Attributes:
        loss: median over the steps of |Δ loss|, relative where losses are above 1.
        length: median of |⟨u, g⟩/⟨g, g⟩ − 1|, u and g being what the device's and the CPU's step add to the parameters:
            by how much the device's step is too long or too short.
        update: median of ‖u − g‖/‖g‖.
        losses: the device's losses.
        golden: the CPU's.
    """

    loss: float
    length: float
    update: float
    losses: tuple[float, ...]
    golden: tuple[float, ...]


def lockstep(golden: Steps, other: Steps, count: int) -> Gap:
    """Make `count` steps of each.

    Medians, not maxima: a detector decides (which anchor, which proposal), and where two scores differ by less than
    rounding it may decide otherwise in one of the steps.

    Args:
        golden: on the CPU, in float32.
        other: the same training elsewhere, or otherwise.
        count: how many steps.
    """
    rows, losses, theirs = [], [], []
    for _ in range(count):
        _copy(golden, other)
        before = _parameters(golden)
        theirs.append(golden.step())
        losses.append(other.step())
        errors = _errors(_parameters(other) - before, _parameters(golden) - before)
        rows.append((_apart(losses[-1], theirs[-1]), *errors))
    loss, length, update = (statistics.median(column) for column in zip(*rows, strict=True))
    return Gap(loss, length, update, tuple(losses), tuple(theirs))


def _apart(loss: float, golden: float) -> float:
    return abs(loss - golden) / max(1.0, abs(golden))


def _errors(update: torch.Tensor, golden: torch.Tensor) -> tuple[float, float]:
    """Of a step's update: its error in length, and its error as a whole."""
    length = (update @ golden) / (golden @ golden) - 1
    return abs(float(length)), float((update - golden).norm() / golden.norm())


def _parameters(steps: Steps) -> torch.Tensor:
    """All trained parameters in a row: float64, on the CPU, a copy."""
    import torch

    return torch.cat([p.detach().cpu().double().flatten() for p in steps.model.parameters() if p.requires_grad])


def _copy(source: Steps, target: Steps) -> None:
    """Give `target` the weights, statistics and momenta of `source`."""
    import torch

    with torch.no_grad():
        ours_by_name = target.model.state_dict()
        for name, tensor in source.model.state_dict().items():
            ours_by_name[name].copy_(tensor)
        for ours, theirs in zip(_trained(target), _trained(source), strict=True):
            state = source.optimizer.state.get(theirs, {})
            if "momentum_buffer" in state:
                target.optimizer.state[ours]["momentum_buffer"] = state["momentum_buffer"].to(ours.device, copy=True)


def _trained(steps: Steps) -> list[torch.Tensor]:
    return [parameter for group in steps.optimizer.param_groups for parameter in group["params"]]
