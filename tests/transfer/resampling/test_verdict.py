"""The verdict on two rows: hand-computed parts of its variance, Holm's example, and its sentences."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from transfer.resampling.verdict import Verdict, compare, holm

IMAGES = np.random.default_rng(3).normal(0, 1, 2000)  # what the resampled images do to every trial
IMAGES = (IMAGES - IMAGES.mean()) / IMAGES.std(ddof=1)


def test_one_trial_has_the_images_interval() -> None:
    found = compare([54.0], [50.0], [54 + 2 * IMAGES], [50 + IMAGES])
    assert found is not None and not found.seeds
    assert (found.difference, found.agree) == (4.0, np.mean(IMAGES > -4))
    assert (found.low, found.high) == pytest.approx(stats.norm.interval(0.95, 4, 1), abs=1e-4)
    assert found.p == pytest.approx(2 * stats.norm.sf(4), rel=1e-3)
    assert found.detectable == pytest.approx(1.959964 + 0.841621, abs=1e-4)
    assert found.sentence("SimSiam", "scratch").startswith("SimSiam is above scratch by 4.0 ± 2.0 AP; seen in ")


def test_trials_add_their_spread_once() -> None:
    """Equal shifts in all trials are the images'; a trial's own response to the images is in its spread already."""
    ours, theirs = [54.0, 55.0, 56.0], [50.0, 50.0, 53.0]
    a, b = [54 + 2 * IMAGES] * 3, [50 + IMAGES] * 3
    found = compare(ours, theirs, a, b)
    parts = [1.0, 1 / 3, 3 / 3]
    df = sum(parts) ** 2 / (parts[1] ** 2 / 2 + parts[2] ** 2 / 2)
    assert found is not None and found.seeds
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, df, 4.0, math.sqrt(sum(parts))), abs=1e-4)
    own = np.stack([np.roll(IMAGES, shift) for shift in (1, 2, 3)]) * 0.5
    again = compare(ours, theirs, a + own, b)
    images = np.var(2 * IMAGES + own.mean(0) - IMAGES, ddof=1)
    own_part = np.var(own - own.mean(0), axis=1, ddof=1).sum() / 2
    assert own_part == pytest.approx(0.25, rel=0.1)
    parts = [images, (1 - own_part) / 3, 3 / 3]
    df = sum(parts) ** 2 / ((1 / 3) ** 2 / 2 + (3 / 3) ** 2 / 2)  # the spread is as uncertain as before
    assert again is not None
    assert (again.low, again.high) == pytest.approx(stats.t.interval(0.95, df, 4.0, math.sqrt(sum(parts))), abs=1e-6)


def test_without_resamples_it_is_welchs_test() -> None:
    ours, theirs = [54.0, 55.5, 56.0], [50.0, 50.5]
    found, welch = compare(ours, theirs), stats.ttest_ind(ours, theirs, equal_var=False)
    assert found is not None and found.p == pytest.approx(welch.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(welch.confidence_interval()))


def test_a_spread_that_the_images_explain_adds_nothing() -> None:
    own = np.stack([IMAGES, np.roll(IMAGES, 1)])
    found = compare([50.0, 50.001], [40.0, 40.0], 50 + own, np.full_like(own, 40))
    error = own.mean(0).std(ddof=1)
    assert found is not None
    assert (found.low, found.high) == pytest.approx(stats.norm.interval(0.95, 10.0005, error), abs=1e-4)


def test_resamples_without_a_value_do_not_count_and_nothing_is_said_of_nothing() -> None:
    drawn, other = 54 + 2 * IMAGES, 50 + IMAGES
    whole = compare([54.0], [50.0], [drawn[3:]], [other[3:]])
    drawn[:2], other[2] = np.nan, np.nan
    assert compare([54.0], [50.0], [drawn], [other]) == whole
    assert compare([math.nan], [50.0], [drawn], [other]) is None
    assert compare([54.0], [50.0], [np.full(9, 54.0)], [np.full(9, 50.0)]) is None, "a single image"
    assert compare([54.0], [50.0]) is None
    same = compare([54.0], [54.0], [other], [other])
    assert same is not None and (same.low, same.high, same.p, same.is_different) == (0, 0, 1, False)


def test_holms_example() -> None:
    """Five p-values, corrected as R's `p.adjust(p, "holm")` does."""
    some = Verdict(1.0, 0.0, 2.0, 1.0, 1.0, 1.0, True)
    found = holm([replace(some, p=p) if p is not None else None for p in (0.04, 0.01, None, 0.03, 0.02, 0.5)])
    assert [one and one.p_holm for one in found] == pytest.approx([0.09, 0.05, None, 0.09, 0.08, 0.5])
    assert [one.is_different for one in found if one] == [False] * 5 and replace(some, p=0.04).is_different


def test_sentences() -> None:
    above = Verdict(4.62, 4.1, 5.14, 1e-9, 0.7, 1.0, True)
    assert (
        above.sentence("SimSiam", "supervised") == "SimSiam is above supervised by 4.6 ± 0.5 AP; seen in every resample"
    )
    below = replace(above, difference=-4.62, low=-5.14, high=-4.1, agree=0.9996, seeds=False)
    assert below.sentence("A", "B", "AP50").startswith(
        "A is below B by 4.6 ± 0.5 AP50; seen in 99.9 % of the resamples"
    )
    open_ = Verdict(0.25, -0.3, 0.8, 0.4, 0.9, 0.7, True)
    expected = "A cannot be told from B: −0.3 … +0.8 AP; a difference of 0.9 could have been seen"
    assert open_.sentence("A", "B") == expected
