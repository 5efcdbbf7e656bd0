"""Statistics against hand-computed values and scipy's own t-test."""

from __future__ import annotations

import math
import random

import pytest

from transfer.report import statistics
from transfer.report.cells import difference, p_value, printed, with_std


def test_sample_std_divides_by_n_minus_one() -> None:
    assert statistics.sample_std([1.0, 2.0, 3.0, 4.0]) == pytest.approx(math.sqrt(5 / 3))
    assert statistics.sample_std([1.0]) is None
    assert statistics.mean([]) is None


@pytest.mark.parametrize("seed", range(20))
def test_welch_equals_scipys(seed: int) -> None:
    from scipy.stats import ttest_ind

    source = random.Random(seed)
    a = [source.gauss(50, 1) for _ in range(source.randint(2, 6))]
    b = [source.gauss(50.5, 0.3) for _ in range(source.randint(2, 6))]
    t, df, p = statistics.welch(a, b)
    reference = ttest_ind(a, b, equal_var=False)
    assert (t, df, p) == pytest.approx((reference.statistic, reference.df, reference.pvalue), rel=1e-10)


def test_welch_by_hand() -> None:
    # means 2 and 5, variances 1 and 4, n 3 and 3: t = -3 / sqrt(5/3), df = (5/3)^2 / ((1/9 + 16/9) / 2)
    t, df, _ = statistics.welch([1.0, 2.0, 3.0], [3.0, 5.0, 7.0])
    assert t == pytest.approx(-3 / math.sqrt(5 / 3))
    assert df == pytest.approx((25 / 9) / (17 / 18))


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0, 2.0]), ([], [1.0]), ([1.0, 1.0], [2.0, 2.0])])
def test_welch_is_undefined_for_one_trial_or_no_spread(a: list[float], b: list[float]) -> None:
    assert statistics.welch(a, b) == (None, None, None)


def test_bootstrap_interval_covers_what_it_should() -> None:
    source = random.Random(0)
    a, b = [source.gauss(10, 1) for _ in range(200)], [source.gauss(8, 2) for _ in range(200)]
    low, high = statistics.bootstrap_interval(a, b)
    spread = math.sqrt(statistics.sample_std(a) ** 2 / 200 + statistics.sample_std(b) ** 2 / 200)
    centre = sum(a) / 200 - sum(b) / 200
    assert low == pytest.approx(centre - 1.96 * spread, abs=0.05)
    assert high == pytest.approx(centre + 1.96 * spread, abs=0.05)
    assert statistics.bootstrap_interval(a, b) == (low, high), "the same data give the same interval"


def test_bootstrap_interval_of_equal_values_is_a_point() -> None:
    assert statistics.bootstrap_interval([3.0, 3.0], [1.0, 1.0]) == (2.0, 2.0)
    assert statistics.bootstrap_interval([3.0], [1.0, 1.0]) == (None, None)


def test_mean_interval_is_students() -> None:
    low, high = statistics.mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776445105 * math.sqrt(2.5) / math.sqrt(5)  # t for 4 degrees of freedom, 97.5 %
    assert (low, high) == pytest.approx((3 - half, 3 + half))


def test_outliers_by_grubbs() -> None:
    assert statistics.outliers([9.9, 10.0, 10.0, 10.1, 13.0]) == (4,)
    assert statistics.outliers([9.8, 9.9, 10.0, 10.1, 10.2]) == ()
    assert statistics.outliers([1.0, 1.0, 9.0]) == (), "three are too few"
    assert statistics.outliers([5.0] * 5) == ()


@pytest.mark.parametrize("n", range(4, 13))
def test_grubbs_critical_values(n: int) -> None:
    """The tabulated ones are the formula's, and the test changes its mind there."""
    critical = statistics.grubbs_formula(n)
    if n in statistics.GRUBBS:
        assert statistics.GRUBBS[n] == pytest.approx(critical, abs=6e-4)
    spread = 1.0
    for factor, found in ((0.999, ()), (1.001, (0,))):
        values = _with_g(n, critical * factor, spread)
        assert statistics.outliers(values) == found


def _with_g(n: int, g: float, spread: float) -> list[float]:
    """n values of mean 0 and this sample std whose first lies g stds away."""
    first = g * spread
    rest = -first / (n - 1)
    left = (n - 1) * spread**2 - first**2 - (n - 1) * rest**2  # sum of squares the others still owe
    away = math.sqrt(left / 2)
    return [first, rest - away, rest + away, *([rest] * (n - 3))]


def test_few_normal_samples_have_an_outlier() -> None:
    source = random.Random(0)
    found = sum(bool(statistics.outliers([source.gauss(0, 1) for _ in range(5)])) for _ in range(4000))
    assert 20 <= found <= 65  # one in a hundred


@pytest.mark.parametrize(
    ("value", "text"),
    [(75.45, "75.5"), (75.449999999999996, "75.5"), (75.44, "75.4"), (0.05, "0.1"), (-0.04, "0.0"), (None, "")],
)
def test_digits_round_halves_away_from_zero(value: float | None, text: str) -> None:
    assert printed(value) == text


def test_a_difference_agrees_with_the_digits_beside_it() -> None:
    assert difference(75.46, 75.5) == "+0.0"
    assert difference(75.44, 75.5) == "-0.1"
    assert difference(77.0, 75.5) == "+1.5"


def test_texts() -> None:
    assert with_std(75.45, 0.249) == "75.5 ± 0.2"
    assert with_std(75.45, None) == "75.5"
    assert (p_value(None), p_value(0.0004), p_value(0.0126)) == ("no test", "p <0.001", "p 0.013")
