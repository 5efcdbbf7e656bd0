"""Statistics of a few trials against hand-computed values and scipy's own t-test."""

from __future__ import annotations

import math
import random

import pytest

from transfer.report import statistics
from transfer.report.cells import difference, p_value, printed, with_std
from transfer.resampling.verdict import compare


def test_sample_std_divides_by_n_minus_one() -> None:
    assert statistics.sample_std([1.0, 2.0, 3.0, 4.0]) == pytest.approx(math.sqrt(5 / 3))
    assert statistics.sample_std([1.0]) is None
    assert statistics.mean([]) is None


@pytest.mark.parametrize("seed", range(20))
def test_a_verdict_on_seeds_alone_is_scipys_welch(seed: int) -> None:
    from scipy.stats import ttest_ind

    source = random.Random(seed)
    a = [source.gauss(50, 1) for _ in range(source.randint(2, 6))]
    b = [source.gauss(50.5, 0.3) for _ in range(source.randint(2, 6))]
    found, reference = compare(a, b), ttest_ind(a, b, equal_var=False)
    assert found is not None and found.p == pytest.approx(reference.pvalue, rel=1e-10)
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval()), rel=1e-8)


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0, 2.0]), ([1.0, 1.0], [2.0, 2.0]), ([0.1] * 5, [0.3] * 5)])
def test_one_trial_or_no_spread_has_no_verdict(a: list[float], b: list[float]) -> None:
    assert compare(a, b) is None


def test_trials_of_equal_ap_leave_the_images_part() -> None:
    drawn, none = [[39.0, 41.0] * 1000] * 3, [[0.0] * 2000] * 3
    found, single = compare([40.0] * 3, [0.0] * 3, drawn, none), compare([40.0], [0.0], drawn[:1], none[:1])
    assert found is not None and single is not None and (found.low, found.high) == (single.low, single.high)
    assert found.high == pytest.approx(40 + 1.96, abs=1e-3)


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
