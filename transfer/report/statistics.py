"""Mean, sample std and outliers of a few trials; what a difference means is decided in `transfer/resampling`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

OUTLIER_LEVEL = 0.01
GRUBBS = {4: 1.496, 5: 1.764, 6: 1.973, 7: 2.139, 8: 2.274, 9: 2.387, 10: 2.482}
"""Critical values at that level (Grubbs 1969, Table 1): usual numbers of trials need no scipy, which loads slowly."""


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean; None for an empty sample."""
    return math.fsum(values) / len(values) if values else None


def sample_std(values: Sequence[float]) -> float | None:
    """Sample standard deviation (divisor n − 1); None for fewer than two values."""
    return math.sqrt(variance(values)) if len(values) > 1 else None


def variance(values: Sequence[float]) -> float:
    """Sample variance (divisor n − 1) of two values or more."""
    if min(values) == max(values):
        return 0.0  # exactly, despite the rounding of the mean
    center = math.fsum(values) / len(values)
    return math.fsum((value - center) ** 2 for value in values) / (len(values) - 1)


def outliers(values: Sequence[float]) -> tuple[int, ...]:
    """The position of a value that is too far from the others by Grubbs' test (two-sided, level 0.01); at most one.

    Frank E. Grubbs, Procedures for Detecting Outlying Observations in Samples, Technometrics 11 (1969). A rule on the
    median absolute deviation would report a third of all samples of five. Fewer than four values have no outlier.
    """
    spread = sample_std(values)
    if len(values) < 4 or not spread:
        return ()
    center = math.fsum(values) / len(values)
    far = max(range(len(values)), key=lambda i: abs(values[i] - center))
    critical = GRUBBS.get(len(values)) or grubbs_formula(len(values))
    return (far,) if abs(values[far] - center) / spread > critical else ()


@lru_cache(maxsize=64)
def grubbs_formula(n: int) -> float:
    """The critical value of Grubbs' two-sided test for n values, by Student's t."""
    from scipy.special import stdtrit

    t = float(stdtrit(n - 2, OUTLIER_LEVEL / (2 * n)))
    return (n - 1) / math.sqrt(n) * math.sqrt(t**2 / (n - 2 + t**2))
