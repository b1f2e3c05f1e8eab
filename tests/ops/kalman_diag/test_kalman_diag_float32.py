"""Derivatives and refusals of operators that are called with float32 tensors, without the public functions."""

from __future__ import annotations

import math

import kalman_cases
import pytest
import torch
from testing import cases
from torch import Tensor

CASE = kalman_cases.make(4, 37)


def ops():
    import lowrank_core as lc

    lc.kalman_diag_gain(torch.ones(1), torch.ones(1, 1, requires_grad=True), 1.0)  # registers the operators
    return torch.ops.lowrank_core


def gradients(p: Tensor, h: Tensor, dk: Tensor) -> tuple[Tensor, ...]:
    given = [x.clone().requires_grad_() for x in (p, h, torch.ones(4, dtype=p.dtype))]
    return torch.autograd.grad(ops().kalman_diag_gain(*given), given, dk.to(p.dtype))


def test_derivatives_of_a_float32_gain_are_those_of_float64():
    """Computed in float64, from a cotangent in float32, and rounded once."""
    p, h, dk = CASE.p.float(), CASE.jac.float(), cases.gaussian(37, 4, seed=5).float()
    for found, exact in zip(gradients(p, h, dk), gradients(p.double(), h.double(), dk.double()), strict=True):
        assert found.dtype == torch.float32
        assert bool(((found - exact).abs() <= 2.0**-24 * exact.abs()).all())


@pytest.mark.parametrize("options", [{"lr": math.nan}, {"lr": math.inf}, {"lr": 1.0, "kl_limit": 0.0}])
def test_numbers_out_of_range_are_refused_by_the_operator(options):
    lists = [[x.float()] for x in (CASE.theta, CASE.p, CASE.jac, CASE.score)]
    before = [x[0].clone() for x in lists]
    with pytest.raises(ValueError, match=r"kalman_diag_step_: `(lr|kl_limit)` must be a"):
        ops().kalman_diag_step_(*lists, **{"kl_limit": None, **options})
    assert all(torch.equal(x[0], y) for x, y in zip(lists, before, strict=True))
