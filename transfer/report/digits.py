"""Numbers as the paper prints them: one decimal, halves away from zero."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

STEP = Decimal("0.1")


def rounded(value: float) -> Decimal:
    """`value` with one decimal. Noise of binary sums (75.44999999999999) is taken off first."""
    return (Decimal(repr(round(value, 9))).quantize(STEP, ROUND_HALF_UP)) + Decimal(0)


def printed(value: float | None, none: str = "") -> str:
    """`75.5`; `none` where there is no value."""
    return none if value is None else str(rounded(value))


def with_std(mean: float | None, std: float | None, none: str = "") -> str:
    """`75.5 ± 0.2`, or the mean alone where n is 1."""
    return printed(mean, none) + (f" ± {printed(std)}" if mean is not None and std is not None else "")


def difference(value: float, other: float) -> str:
    """`+0.2`: the difference of the printed digits, so that it agrees with what stands beside it."""
    return f"{rounded(value) - rounded(other):+}".replace("-0.0", "+0.0")


def p_value(p: float | None) -> str:
    """`0.013`, `<0.001`, or `-` where the test is not defined."""
    if p is None:
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"
