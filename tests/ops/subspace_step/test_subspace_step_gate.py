"""A gradient that is not finite changes nothing; one that is changes the weight whatever else is zero."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from subspace_cases import (
    DTYPES,
    LIMITED,
    SIDES,
    STRONG,
    Shape,
    Weight,
    every_residual,
    every_rule,
    every_side,
    stepped,
    take,
    weight,
)
from testing import cases, checks

BAD = (math.nan, math.inf, -math.inf)
SHAPE = Shape(45, 37, 6)
every_bad = pytest.mark.parametrize("bad", BAD)


def refuse(*weights: Weight, **options: Any) -> None:
    """The step is not taken and not a bit is changed."""
    before = [w.clone() for w in weights]
    assert take(*weights, **{**STRONG, **options}) is False
    assert checks.same_bits([w.state() for w in weights], [w.state() for w in before])


@every_bad
@every_side
@every_residual
@every_rule
def test_nothing_is_changed(rule: str, residual: str, side: str, bad: float) -> None:
    """One bad number in one weight of a list, at either end or in the middle of its memory, of any dtype."""
    limit = 3.0 if residual in LIMITED else None
    for number, dtype in enumerate(DTYPES):
        weights = [weight(s, side=side, dtype=dtype, rule=rule, limit=limit) for s in (Shape(9, 7, 2), SHAPE)]
        broken = weights[number % 2].grad.view(-1)
        broken[(0, len(broken) // 2, -1)[number % 3]] = bad
        refuse(*weights, rule=rule, residual=residual, rounding="stochastic")


@every_bad
def test_anywhere(bad: float) -> None:
    """Every place of a small gradient, also under a row of zeros in the basis."""
    for place in range(7 * 5):
        w = weight(Shape(7, 5, 2))
        w.basis[3] = 0.0
        w.grad.view(-1)[place] = bad
        refuse(w)


@every_bad
def test_in_a_large_one(bad: float) -> None:
    w = weight(Shape(cases.DEPTH + 1, 40 * cases.DEPTH + 1, 2))
    w.grad[-1, -1] = bad
    refuse(w)


@every_residual
def test_where_the_subspace_is_empty(residual: str) -> None:
    """A gradient that meets no basis is looked at all the same."""
    for side, bad in itertools.product(SIDES, BAD):
        w = weight(Shape(9, 7, 0), side=side)
        w.grad[4, 3] = bad
        refuse(w, residual=residual)


def test_coded_moments_are_not_changed() -> None:
    size = SHAPE.rank * SHAPE.other
    plain = weight(SHAPE)
    for kinds in ((torch.bfloat16, torch.bfloat16), (torch.int8, torch.uint8)):
        w = plain.clone()
        coded = [torch.full((SHAPE.rank, SHAPE.other), 3, dtype=kind) for kind in kinds]
        if kinds[0] == torch.int8:
            coded = [(x, torch.ones(-(-size // cases.DEPTH))) for x in coded]
        w.exp_avg, w.exp_avg_sq = coded
        w.grad[3, 4] = math.nan
        refuse(w)


def test_a_low_rank_gradient_that_overflows() -> None:
    w = weight(SHAPE)
    w.grad.fill_(3e38)
    w.basis.fill_(1.0)
    refuse(w)


@every_residual
@every_rule
def test_from_zeros_come_zeros(rule: str, residual: str) -> None:
    """A zero gradient and zero moments: the weight decays, and nothing becomes NaN."""
    before = weight(SHAPE, dtype=torch.float64, rule=rule)
    for x in (before.grad, *before.state()[1:]):
        x.zero_()
    before.limit = torch.zeros(1) if residual in LIMITED else None
    eps = 0.125
    after = stepped(before, rule=rule, residual=residual, lr=0.25, weight_decay=0.2, eps=eps)
    assert checks.same_bits(after.param, (1 - 0.25 * 0.2) * before.param)
    if rule == "adabelief":  # whose variance is eps at least
        assert bool((after.exp_avg_sq == eps).all())
        after.exp_avg_sq.zero_()
    assert not any(x.any() for x in after.state()[1:])
