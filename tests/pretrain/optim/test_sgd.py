"""The forms of the optimiser: torch's for-loop, foreach and fused SGD give the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pretrain.config import defaults
from pretrain.optim.optimizer import build_sgd
from tests.pretrain.golden import narrow
from tests.pretrain.golden.ours import narrow_simsiam

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def _trained(implementation: str, device: str, **solver: Any) -> dict[str, torch.Tensor]:
    """Three float32 steps on the narrow model; weights and momenta."""
    cfg = defaults()
    cfg.SOLVER.update(OPTIMIZER_IMPL=implementation, BASE_LR=1.6, BATCH_SIZE=narrow.BATCH, **solver)
    method = narrow_simsiam().float().to(device)
    optimizer = build_sgd(method, cfg)
    for step in range(3):
        # The same gradients for all: what differs is the optimiser alone.
        generator = torch.Generator().manual_seed(step)
        for p in method.parameters():
            p.grad = torch.randn(p.shape, generator=generator).to(device) if p.requires_grad else None
        optimizer.step()
    momenta = {f"momentum {n}": s["momentum_buffer"] for n, s in optimizer.state_dict()["state"].items()}
    return {**{name: t.clone() for name, t in method.state_dict().items()}, **momenta}


def _gap(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    return max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("implementation", "tolerance"), [("foreach", 0.0), ("fused", 1e-6)])
def test_all_implementations_make_equal_steps(implementation: str, tolerance: float, device: str) -> None:
    reference = _trained("for-loop", device)
    assert _gap(_trained(implementation, device), reference) <= (tolerance if device == "cpu" else 1e-6)
    assert _gap(_trained(implementation, device, WEIGHT_DECAY=2e-4), reference) > 1e-5  # the comparison can fail


@pytest.mark.parametrize(("name", "flags"), [("for-loop", (False, False)), ("foreach", (True, False))])
def test_configured_implementation_is_used(name: str, flags: tuple[bool, bool]) -> None:
    cfg = defaults()
    cfg.SOLVER.OPTIMIZER_IMPL = name
    groups = build_sgd(narrow_simsiam(), cfg).param_groups
    assert {(group["foreach"], group["fused"]) for group in groups} == {flags}
    cfg.SOLVER.OPTIMIZER_IMPL = "fused"
    assert all(group["fused"] for group in build_sgd(narrow_simsiam(), cfg).param_groups)
