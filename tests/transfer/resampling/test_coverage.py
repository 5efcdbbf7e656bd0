"""In 95 ± 1.5 % of 1,000 simulated tables the 95 % interval holds the true difference; a null one is found in 5 %."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.transfer.resampling.coverage import Coverage, Table, make_tables, measure, percentile, verdict

pytestmark = pytest.mark.slow
SPREAD = 0.06


@pytest.fixture(scope="module")
def tables() -> Sequence[Table]:
    return list(make_tables(1000, images=300, spread=SPREAD, trials=6, resamples=500))


@pytest.mark.parametrize(("trials", "power"), [(1, 40), (2, 28), (5, 45)])
def test_the_interval_holds_the_true_difference(tables: Sequence[Table], trials: int, power: float) -> None:
    null, planted = measure(tables, SPREAD, trials, [verdict])
    assert 93.5 <= null.holds <= 96.5 and 93.5 <= planted.holds <= 96.5
    assert null.finds == pytest.approx(100 - null.holds), "the difference of equals is found as often as it is missed"
    assert planted.finds > power > 4 * null.finds, "a planted one is found"


def test_the_images_alone_are_too_little_where_seeds_differ(tables: Sequence[Table]) -> None:
    """This test can fail: the interval that leaves out the seeds misses the band."""
    null: Coverage = measure(tables, SPREAD, 2, [percentile])[0]
    assert null.holds < 93.5
