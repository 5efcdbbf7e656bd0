"""How two runs are compared and shown."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Check:
    """One thing that must be equal.

    Attributes:
        what: its name.
        ok: whether it is.
        found: the measure.
    """

    what: str
    ok: bool
    found: str

    def __str__(self) -> str:
        return f"{'equal  ' if self.ok else 'DIFFERS'}  {self.what}: {self.found}"


def compare_steps(
    ours: list[dict[str, float]], theirs: list[dict[str, float]], limit: float = 1e-5
) -> tuple[list[str], Check]:
    """A line a step with both total losses, and the largest relative difference over all losses and steps."""
    lines = ["step  lr           total loss, ours  theirs            largest relative difference of a loss"]
    worst, same_names = 0.0, len(ours) == len(theirs)
    for step, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        same_names &= a.keys() == b.keys()
        differences = {name: abs(a[name] - b[name]) / max(abs(b[name]), 1e-30) for name in a.keys() & b.keys()}
        name = max(differences, key=lambda key: differences[key])
        worst = max(worst, differences[name])
        where = f"{differences[name]:.3g}" + (f" ({name})" if differences[name] else "")
        lines.append(f"{step:<4d}  {a['lr']:<11.6g}  {a['total_loss']:<16.9g}  {b['total_loss']:<16.9g}  {where}")
    names = ", ".join(sorted(name for name in theirs[0] if name != "lr"))
    return lines, Check("losses and rates", same_names and worst <= limit, f"{worst:.3g} (limit {limit:g}; {names})")


def close(what: str, ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], limit: float) -> Check:
    """Largest difference of a tensor relative to its largest value, over all tensors of two state dicts."""
    if ours.keys() != theirs.keys():
        return Check(what, False, f"names differ: {sorted(ours.keys() ^ theirs.keys())[:3]}")
    worst, where = 0.0, "none"
    for name, value in theirs.items():
        if ours[name].shape != value.shape:
            return Check(what, False, f"{name} has shape {tuple(ours[name].shape)}, not {tuple(value.shape)}")
        difference = float(
            (ours[name].double() - value.double()).abs().max() / value.double().abs().max().clamp(min=1e-30)
        )
        if difference > worst:
            worst, where = difference, name
    return Check(what, worst <= limit, f"{worst:.3g} (limit {limit:g}; {where}; {len(theirs)} tensors)")
