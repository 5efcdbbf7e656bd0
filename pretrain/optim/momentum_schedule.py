"""The momentum of a moving-average network as a function of the iteration."""

from __future__ import annotations

import math


def cosine_momentum(base: float, iteration: int, total: int) -> float:
    """BYOL's momentum τ of the target network: from `base` at the first iteration to 1 at the run's end.

    τ = 1 − (1 − base)·(cos(πk/K) + 1)/2 (arXiv 2006.07733, section 3.3; deepmind-research byol/utils/schedules.py).

    Args:
        base: τ of the first iteration, 0 … 1.
        iteration: k, from 0; at K and beyond τ is 1.
        total: K, iterations of the run.
    """
    return 1 - (1 - base) * (math.cos(math.pi * min(iteration, total) / total) + 1) / 2
