"""BYOL's target momentum against its closed form and the values that its original's formula gives."""

from __future__ import annotations

import pytest

from pretrain.optim.schedule import cosine_momentum


def test_momentum_rises_from_the_base_to_one() -> None:
    assert cosine_momentum(0.99, 0, 100) == pytest.approx(0.99, abs=1e-15)
    assert cosine_momentum(0.99, 50, 100) == pytest.approx(0.995, abs=1e-15)
    assert cosine_momentum(0.99, 100, 100) == cosine_momentum(0.99, 101, 100) == 1
    values = [cosine_momentum(0.99, k, 100) for k in range(101)]
    assert values == sorted(values) and len(set(values)) == 101


def test_momentum_at_a_quarter_and_a_third() -> None:
    """cos(π/4) = √½ and cos(π/3) = ½."""
    assert cosine_momentum(0.996, 25, 100) == pytest.approx(1 - 0.004 * (0.5**0.5 + 1) / 2, rel=1e-14)
    assert cosine_momentum(0.996, 10, 30) == pytest.approx(1 - 0.004 * 0.75, rel=1e-14)
    assert cosine_momentum(0.996, 10, 30) != pytest.approx(cosine_momentum(0.996, 10, 31), rel=1e-6)
