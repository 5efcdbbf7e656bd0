"""How two runs are compared and shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tests.parity.comparison import Check


def same(what: str, equal: bool, found: str) -> Check:
    """A comparison without a number: keys, names, an order."""
    return Check(what, equal, found, 0.0 if equal else math.inf)


def compare_steps(
    ours: list[dict[str, float]], theirs: list[dict[str, float]], limit: float = 1e-5
) -> tuple[list[str], Check]:
    """A line a step with both total losses, and the largest relative difference over all losses and steps."""
    lines = ["step  lr           total loss, ours  theirs            largest relative difference of a loss"]
    worst, same_names = 0.0, len(ours) == len(theirs)
    for step, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        same_names &= a.keys() == b.keys()
        shared = a.keys() & b.keys()
        differences = {name: _number(abs(a[name] - b[name]) / max(abs(b[name]), 1e-30)) for name in shared}
        name = max(differences, key=lambda key: differences[key])
        worst = max(worst, differences[name])
        where = f"{differences[name]:.3g}" + (f" ({name})" if differences[name] else "")
        lines.append(f"{step:<4d}  {a['lr']:<11.6g}  {a['total_loss']:<16.9g}  {b['total_loss']:<16.9g}  {where}")
    names = ", ".join(sorted(name for name in theirs[0] if name != "lr"))
    found = f"{worst:.3g} (limit {limit:g}; {names})"
    return lines, Check("losses and rates", same_names and worst <= limit, found, worst if same_names else math.inf)


def close(
    what: str,
    ours: Mapping[str, torch.Tensor],
    theirs: Mapping[str, torch.Tensor],
    limit: float,
    floor: float = 1e-30,
) -> Check:
    """Largest difference of a tensor relative to its largest value (at least `floor`), over all of two state dicts."""
    if ours.keys() != theirs.keys():
        return same(what, False, f"names differ: {sorted(ours.keys() ^ theirs.keys())[:3]}")
    worst, where = 0.0, "none"
    for name, value in theirs.items():
        if ours[name].shape != value.shape:
            return same(what, False, f"{name} has shape {tuple(ours[name].shape)}, not {tuple(value.shape)}")
        found = relative(ours[name], value, floor)
        if found > worst:
            worst, where = found, name
    return Check(what, worst <= limit, f"{worst:.3g} (limit {limit:g}; {where}; {len(theirs)} tensors)", worst)


def relative(ours: torch.Tensor, theirs: torch.Tensor, floor: float = 1e-30) -> float:
    """The largest difference of two tensors relative to the largest value of the second."""
    if not theirs.numel():
        return 0.0
    ours, theirs = ours.double(), theirs.double()
    return _number(float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=floor)))


def _number(difference: float) -> float:
    """A NaN is as far apart as can be."""
    return math.inf if math.isnan(difference) else difference


def close_values(what: str, ours: Any, theirs: Any, limit: float, floor: float = 1e-30) -> Check:
    """The same over nested dictionaries and lists of numbers, each list a vector."""
    return close(what, vectors(ours), vectors(theirs), limit, floor)


def vectors(values: Any, path: str = "") -> dict[str, torch.Tensor]:
    """Dotted key to vector, of nested dictionaries, numbers and lists of numbers."""
    if isinstance(values, dict):
        found: dict[str, torch.Tensor] = {}
        for key, value in values.items():
            found |= vectors(value, f"{path}.{key}" if path else str(key))
        return found
    return {path: torch.as_tensor(values, dtype=torch.float64).reshape(-1)}


def momenta_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The momentum buffers of SGD, by the names of their parameters."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    states = {names[parameter]: state.get("momentum_buffer") for parameter, state in optimizer.state.items()}
    return {name.removeprefix("module."): buffer.clone() for name, buffer in states.items() if buffer is not None}


def set_bn_momentum(model: nn.Module, momentum: float | None) -> None:
    """Give every batch normalisation layer another momentum; None changes nothing."""
    for module in model.modules():
        if momentum is not None and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = momentum
