"""Sinkhorn-Knopp against the original's codes, and where the original's way would overflow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pretrain.methods.parts.losses import sinkhorn
from tests.pretrain.golden import narrow_contrast as fixed

GOLDEN = json.loads((Path(__file__).resolve().parents[2] / "golden" / "swav.json").read_text())["codes"]
# of facebookresearch/swav at 06b1b7c, main_swav.py: distributed_sinkhorn


def _furthest(epsilon: float, steps: int, theirs: str) -> float:
    ours = sinkhorn(fixed.scores()[0].detach(), epsilon, steps)
    return float((ours - torch.tensor(GOLDEN[theirs], dtype=torch.float64)).abs().max())


@pytest.mark.parametrize("steps", GOLDEN)
def test_codes_equal_the_original(steps: str) -> None:
    assert _furthest(fixed.EPSILON, int(steps), steps) < 1e-12


@pytest.mark.parametrize(("epsilon", "steps"), [(fixed.EPSILON, 2), (fixed.EPSILON, 4), (1.01 * fixed.EPSILON, 3)])
def test_a_change_is_detected_by_the_comparison(epsilon: float, steps: int) -> None:
    assert _furthest(epsilon, steps, "3") > 1e-4


def test_rows_are_distributions_and_prototypes_are_used_equally() -> None:
    codes = sinkhorn(fixed.scores()[0].detach(), fixed.EPSILON, 200)
    torch.testing.assert_close(codes.sum(1), torch.ones(fixed.IMAGES, dtype=torch.float64))
    share = fixed.IMAGES / fixed.PROTOTYPES
    torch.testing.assert_close(codes.sum(0), torch.full((fixed.PROTOTYPES,), share).double(), rtol=1e-6, atol=0)


def _by_division(scores: torch.Tensor) -> torch.Tensor:
    q = (scores / fixed.EPSILON).exp()
    for _ in range(fixed.SINKHORN_STEPS):
        q = q / q.sum(0, keepdim=True)
        q = q / q.sum(1, keepdim=True)
    return q


def test_gradient_equals_that_of_plain_divisions() -> None:
    ours, theirs = (fixed.scores()[0] for _ in range(2))
    (sinkhorn(ours, fixed.EPSILON, fixed.SINKHORN_STEPS) * fixed.scores()[1].detach()).sum().backward()
    (_by_division(theirs) * fixed.scores()[1].detach()).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("epsilon", [0.05, 0.005])
def test_extreme_scores_are_finite_in_any_precision(half: torch.dtype, epsilon: float) -> None:
    """At ±1/ε, where exp() of ±200 leaves even float32; and with a prototype far from all samples."""
    scores = torch.ones(8, 6).to(half)
    scores[:, 0], scores[4:, 1:3] = -1, -1
    scores.requires_grad_()
    codes = sinkhorn(scores, epsilon, 3)
    (codes * torch.arange(6)).sum().backward()
    assert codes.dtype == torch.float32 and scores.grad is not None
    assert bool(codes.isfinite().all()) and bool(scores.grad.isfinite().all())
    torch.testing.assert_close(codes.sum(1), torch.ones(8))


def test_half_precision_scores_are_computed_in_float32() -> None:
    scores = fixed.scores()[0].detach().bfloat16()
    torch.testing.assert_close(sinkhorn(scores, 0.05, 3), sinkhorn(scores.double(), 0.05, 3).float())
