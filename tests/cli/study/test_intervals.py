"""The paired interval, against SciPy's."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from lowrank_core.cli.study.intervals import paired, student_quantile
from scipy import stats

EPS = sys.float_info.epsilon


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 6, 7, 10, 29, 30, 101])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_quantile_is_where_the_distribution_says(freedom, confidence):
    t = student_quantile(freedom, confidence)
    # A sum of `freedom` terms <= 1 has an error of that many roundings; the density turns it into one of t.
    off = freedom * EPS / (2 * stats.t.pdf(t, freedom))
    assert abs(t - stats.t.ppf((1 + confidence) / 2, freedom)) <= 8 * off


def test_interval_is_that_of_a_paired_test():
    random = np.random.default_rng(0)
    one, other = random.normal(size=5), random.normal(size=5)
    found = paired(list(one), list(other))
    low, high = stats.ttest_rel(one, other).confidence_interval(0.95)
    size = 64 * EPS * max(abs(low), abs(high), abs(one - other).max())
    assert abs(found.low - low) <= size and abs(found.high - high) <= size
    assert math.isclose(found.mean, (one - other).mean(), abs_tol=size)


@pytest.mark.parametrize(("shift", "sign"), [(-1.0, -1), (0.0, 0), (1.0, 1)])
def test_sign_only_where_zero_is_outside(shift, sign):
    noise = [0.1, -0.1, 0.05, -0.05, 0.0]
    assert paired([x + shift for x in noise], [0.0] * 5).sign == sign


@pytest.mark.parametrize(("one", "other"), [([1.0], [2.0]), ([], []), ([1.0, 2.0], [1.0])])
def test_too_few_or_unequal_are_refused(one, other):
    with pytest.raises(ValueError, match=r"must have two values or more|zip\(\)"):
        paired(one, other)
