"""Mean, sample std, outliers, Welch's t-test and a bootstrap interval; for small samples, so n is always reported."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 4000
OUTLIER_LEVEL = 0.01
GRUBBS = {4: 1.496, 5: 1.764, 6: 1.973, 7: 2.139, 8: 2.274, 9: 2.387, 10: 2.482}
"""Critical values at that level (Grubbs 1969, Table 1): usual numbers of trials need no scipy, which loads slowly."""


@dataclass(frozen=True)
class SampleComparison:
    """One sample compared with another.

    Attributes:
        row: key of the row compared with.
        difference: mean of this sample − mean of the other.
        n, n_other: sizes of the two samples.
        t, df, p: Welch's t statistic, its degrees of freedom and two-sided p-value; None if undefined.
        low, high: 95 % percentile bootstrap interval of the difference; None if undefined.
    """

    row: str
    difference: float
    n: int
    n_other: int
    t: float | None
    df: float | None
    p: float | None
    low: float | None
    high: float | None


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


def compare_samples(values: Sequence[float], other: Sequence[float], row: str) -> SampleComparison | None:
    """Compare a sample with `other`, which is of `row`; None if either is empty."""
    here, there = mean(values), mean(other)
    if here is None or there is None:
        return None
    t, df, p = welch(values, other)
    low, high = bootstrap_interval(values, other)
    return SampleComparison(row, here - there, len(values), len(other), t, df, p, low, high)


def welch(a: Sequence[float], b: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Welch's t-test (unequal variances): t, Welch–Satterthwaite degrees of freedom, two-sided p.

    Undefined, hence three times None, if a sample has fewer than two values or neither has any spread.
    """
    if len(a) < 2 or len(b) < 2 or variance(a) + variance(b) == 0:
        return None, None, None
    from scipy import stats  # loads slowly

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one sample's values may be equal
        found = stats.ttest_ind(a, b, equal_var=False)
    return float(found.statistic), float(found.df), float(found.pvalue)


def bootstrap_interval(
    a: Sequence[float], b: Sequence[float], level: float = 0.95
) -> tuple[float | None, float | None]:
    """Percentile bootstrap interval of mean(a) − mean(b) (Efron and Tibshirani 1993, chapter 13).

    Each sample is resampled on its own, 4,000 times, from a fixed seed. With five trials it is narrower than it should
    be, so n is printed beside it. None if a sample has fewer than two values.
    """
    if len(a) < 2 or len(b) < 2:
        return None, None
    import numpy as np

    means = _resampled_means(tuple(a), 0) - _resampled_means(tuple(b), 1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@lru_cache(maxsize=64)  # the row compared with is the same for many rows
def _resampled_means(values: tuple[float, ...], stream: int) -> np.ndarray:
    import numpy as np

    return np.asarray(np.asarray(values)[_resampled(len(values), stream)].mean(1))


@lru_cache(maxsize=64)
def _resampled(n: int, stream: int) -> np.ndarray:
    """Positions that scipy draws, (resamples, n); all pairs of samples of these sizes share them."""
    import numpy as np
    from scipy import stats

    drawn: list[np.ndarray] = []

    def keep(positions: np.ndarray, axis: int) -> np.ndarray:
        drawn.append(positions)
        return np.asarray(positions.mean(axis))

    rng = np.random.default_rng([n, stream])
    options = {"n_resamples": RESAMPLES, "vectorized": True, "method": "percentile", "random_state": rng}
    stats.bootstrap((np.arange(n),), keep, **options)
    return drawn[0]


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float | None, float | None]:
    """Student's t interval of the mean; None for fewer than two values."""
    center, spread = mean(values), sample_std(values)
    if center is None or spread is None:
        return None, None
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, (1 + level) / 2)) * spread / math.sqrt(len(values))
    return center - half, center + half
