"""The positivity of variances that rounding must not take, on every grid, level and dtype."""

from __future__ import annotations

import math

import kalman_cases
import lowrank_core as lc
import pytest
import torch
from kalman_cases import Filter
from lowrank_core import _core
from testing import machine, tolerance

GRID = [
    (m, n, p, r)
    for m, n in ((1, 1), (4, 4), (16, 12), (16, 40), (64, 20), (10, 300))
    for p in (1e-2, 1.0, 1e2, 1e4, 1e8)
    for r in (1e-4, 0.1, 1.0)
]


@pytest.mark.parametrize("level", _core.isa_levels())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_variances_stay_positive_on_every_grid(dtype: torch.dtype, level: str) -> None:
    """p/R up to 1e12, m above n: plain float32 loses up to half of the variances there."""
    checked = 0
    with machine.isa(level):
        for m, n, p, r in GRID:
            for seed in range(5):
                f = kalman_cases.make(m, n, seed=seed, p=p, scale=r**-0.5).to(dtype)
                after = lc.kalman_diag_step(*f)
                least = 1 / (1 / f.p.double() + f.jac.double().square().sum(0))
                unit, gamma = tolerance.UNIT[f.p.dtype], tolerance.gamma(m + 2, torch.float64)
                assert bool((after.p > 0).all()) and bool((after.p <= f.p).all()), (m, n, p, r, seed)
                assert bool((after.p.double() >= least * (1 - 4 * unit - gamma)).all()), (m, n, p, r, seed)
                assert bool(after.theta.isfinite().all())
                checked += n
    assert checked == 5 * 15 * (1 + 4 + 12 + 40 + 20 + 300)


def test_the_scalar_case_in_float32_is_the_truth_and_not_zero() -> None:
    """p = 1e8, h = 1, R = 0.1: p⁺ is 0.1."""
    one = torch.ones(1, 1)
    after = lc.kalman_diag_step(torch.zeros(1), 1e8 * torch.ones(1), one / math.sqrt(0.1), torch.zeros(1)).p
    assert abs(float(after) - 0.1) <= 4 * tolerance.UNIT[torch.float32]


def test_extreme_variances_neither_fail_nor_vanish() -> None:
    """I + A whose Cholesky pivots drown in rounding, and variances that float32 can hardly hold."""
    for p in (1e-38, 1e-45, 1e20, 1e30, 3e38):
        for m, n in ((1, 1), (6, 3), (12, 40), (64, 20)):
            f = kalman_cases.make(m, n)
            given = Filter(f.theta, torch.full((n,), p, dtype=torch.float64), f.jac, f.score).to(torch.float32)
            assert bool((given.p > 0).all())
            after = lc.kalman_diag_step(*given)
            assert bool((after.p > 0).all()) and bool((after.p <= given.p).all())
