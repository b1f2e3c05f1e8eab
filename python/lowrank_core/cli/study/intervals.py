"""Student's interval of paired differences. SciPy would do, but the command line does not need it otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean difference and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """-1 where the interval lies below zero, 1 above it, 0 where it holds zero."""
        return (self.low > 0) - (self.high < 0)


def paired(one: Sequence[float], other: Sequence[float]) -> Interval:
    """Of the differences one - other, pair by pair.

    Raises:
      ValueError: fewer than two pairs, or not as many of one as of the other.
    """
    differences = [a - b for a, b in zip(one, other, strict=True)]
    if len(differences) < 2:
        raise ValueError(f"paired: `one` must have two values or more, got {len(differences)}; run more seeds")
    mean = fmean(differences)
    half = student_quantile(len(differences) - 1) * stdev(differences) / math.sqrt(len(differences))
    return Interval(mean, mean - half, mean + half)


def student_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The t >= 0 with P(|T| <= t) = `confidence`, for `freedom` >= 1 degrees, by bisection to the last bit."""
    low, high = 0.0, 1.0
    while _within(high, freedom) < confidence:
        high *= 2.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """P(|T| <= t). Source: Abramowitz & Stegun (1964), 26.7.3 and 26.7.4."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    term = total = cosine if freedom % 2 else 1.0
    for k in range(2 + freedom % 2, freedom - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    if freedom % 2 == 0:
        return sine * total
    return 2 / math.pi * (angle + (sine * total if freedom > 1 else 0.0))
