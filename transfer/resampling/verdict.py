"""The verdict on two rows: is their difference more than the test images and the seeds explain?

The images' part of the variance comes from the paired resamples, the seeds' part from the spread of the trials
(`docs/notes/comparison.md` has the coverage of the alternatives).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL, POWER = 0.05, 0.8


@dataclass(frozen=True)
class Verdict:
    """One row compared with another.

    Attributes:
        difference: mean of our trials − mean of theirs, in AP (per cent).
        low, high: its 95 % interval.
        p: two-sided p-value of no difference.
        p_holm: p after Holm's correction over the rows compared; None before `holm`.
        detectable: smallest true difference that such a design finds with 80 % power at the 5 % level.
        agree: share of the resamples whose difference has the sign of `difference`; None without resamples.
        seeds: whether the interval contains the seeds besides the images; it needs two trials of each row.
    """

    difference: float
    low: float
    high: float
    p: float
    detectable: float
    agree: float | None
    seeds: bool
    p_holm: float | None = None

    @property
    def is_different(self) -> bool:
        """Whether the difference is significant at the 5 % level."""
        return (self.p if self.p_holm is None else self.p_holm) < LEVEL

    def sentence(self, ours: str, theirs: str, metric: str = "AP") -> str:
        """The verdict as a sentence.

        Args:
            ours, theirs: names of the rows.
            metric: name of the metric.
        """
        digits = 1 if self.high - self.low >= 0.2 else 2
        if self.is_different:
            half = (self.high - self.low) / 2
            side = "above" if self.difference > 0 else "below"
            text = f"{ours} is {side} {theirs} by {abs(self.difference):.{digits}f} ± {half:.{digits}f} {metric}"
            if self.agree is not None:
                seen = "every resample" if self.agree == 1 else f"{min(self.agree * 100, 99.9):.1f} % of the resamples"
                text = f"{text}; seen in {seen}"
        else:
            low, high = (f"{side:+.{digits}f}".replace("-", "−") for side in (self.low, self.high))
            text = f"{ours} cannot be told from {theirs}: {low} … {high} {metric}"
            text = f"{text}; a difference of {self.detectable:.{digits}f} could have been seen"
        if self.agree is None:
            return f"{text} (seeds only: other test images may differ)"
        return text if self.seeds else f"{text} (test images only: other seeds may differ)"


def compare(
    ours: Sequence[float],
    theirs: Sequence[float],
    drawn: ArrayLike | None = None,
    other_drawn: ArrayLike | None = None,
) -> Verdict | None:
    """Compare the trials of two rows on the same test images.

    Args:
        ours, theirs: (n,) and (m,) AP of each trial, in per cent.
        drawn, other_drawn: (n, R) and (m, R) AP of each trial on the same resampled test sets, or (m, 1)
            constants; None: the seeds alone count, which is Welch's t-test.

    Returns:
        None where nothing can be said: a value is not a number, nothing varies (a single image), or without resamples
        a row has one trial.
    """
    difference, seeds = float(np.mean(ours) - np.mean(theirs)), min(len(ours), len(theirs)) > 1
    if not math.isfinite(difference):
        return None
    parts, agree, interactions = [], None, [0.0, 0.0]
    if drawn is not None and other_drawn is not None:
        samples = [np.asarray(one, dtype=np.float64) for one in (drawn, other_drawn)]
        resampled = samples[0].mean(0) - samples[1].mean(0)
        finite = np.isfinite(resampled)  # a resample can lack every object
        if finite.sum() < 2:
            return None
        resampled = resampled[finite]
        parts = [(float(np.var(resampled, ddof=1)), 0.0)]
        agree = float(np.mean(np.sign(resampled) == np.sign(difference)))
        wide = [np.broadcast_to(one, (len(one), len(finite)))[:, finite] for one in samples]
        interactions = [_interaction(one) for one in wide] if seeds else interactions
    elif not seeds:
        return None
    parts += [_seeds(*one) for one in zip((ours, theirs), interactions, strict=True)] if seeds else []
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return Verdict(0.0, 0.0, 0.0, 1.0, 0.0, agree, seeds) if difference == 0 else None
    from scipy.special import stdtr, stdtrit  # scipy loads slowly

    uncertain = sum(term for _, term in parts)  # 0 where the seeds have no part: Student's t is normal
    df, error = min(variance**2 / uncertain, 1e9) if uncertain else 1e9, math.sqrt(variance)
    half = float(stdtrit(df, 1 - LEVEL / 2)) * error
    return Verdict(
        difference,
        difference - half,
        difference + half,
        float(2 * stdtr(df, -abs(difference) / error)),
        half + float(stdtrit(df, POWER)) * error,
        agree,
        seeds,
    )


def _seeds(values: Sequence[float], interaction: float) -> tuple[float, float]:
    """What the seeds add to the variance of a mean of trials, and how uncertain that is (Satterthwaite's term)."""
    spread = 0.0 if min(values) == max(values) else float(np.var(values, ddof=1))  # 0 despite the mean's rounding
    return max(spread - interaction, 0.0) / len(values), (spread / len(values)) ** 2 / (len(values) - 1)


def _interaction(drawn: NDArray[np.float64]) -> float:
    """The part of the trials' spread that comes from the test images: each seed errs on other ones.

    The resamples of the mean contain it already; with the spread as it is it would count twice.
    """
    own = drawn - drawn.mean(0)
    return float(np.var(own, axis=1, ddof=1).sum()) / (len(drawn) - 1)


def holm(verdicts: Sequence[Verdict | None]) -> list[Verdict | None]:
    """Add Holm's correction over these comparisons (S. Holm, Scandinavian Journal of Statistics 6, 1979)."""
    order = sorted((i for i, one in enumerate(verdicts) if one), key=lambda i: verdicts[i].p)  # type: ignore[union-attr]
    corrected, largest = list(verdicts), 0.0
    for rank, i in enumerate(order):
        one = verdicts[i]
        assert one is not None
        largest = max(largest, min(1.0, one.p * (len(order) - rank)))
        corrected[i] = replace(one, p_holm=largest)
    return corrected
