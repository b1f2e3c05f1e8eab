"""The limiter: |S| grows by `growth` per step at most, is never limited downwards, and forgets what says nothing."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from subspace_cases import LIMITED, Shape, Weight, every_rule, every_side, stepped, take, weight
from testing import cases, checks, tolerance

GROWTH = 1.01
SHAPE = Shape(20, 31, 5)
U32 = tolerance.UNIT[torch.float32]
every_limited = pytest.mark.parametrize("residual", LIMITED)


def rest(w: Weight, **options: Any) -> tuple[float, float]:
    """One step of a float64 weight, in place: |S| as the weight moved, without what the subspace did, and as kept."""
    plain, before = w.clone(), w.param.clone()
    plain.limit = None
    assert take(w, lr=1.0, **options)
    change = before - w.param
    if options["residual"] == "scaled":
        assert take(plain, lr=1.0, **{**options, "residual": "drop"})
        change = change - (before - plain.param)
    return tolerance.norm(change), float(w.limit)


def error(w: Weight) -> float:
    """Of a norm found by `rest`: that of the float64 products, and of the float32 number that is kept."""
    size = tolerance.norm(w.param) + tolerance.norm(w.grad) + tolerance.norm(w.exp_avg)
    return 4 * tolerance.gamma(max(w.param.shape), torch.float64) * size + 2 * U32 * float(w.limit)


@given(st.lists(st.integers(-12, 12), min_size=2, max_size=8), st.sampled_from(LIMITED))
def test_g7_the_rest_grows_slowly(powers: list[int], residual: str) -> None:
    """Whatever the gradients: what is kept is what moved the weight, and grows by at most `growth`."""
    w = weight(SHAPE, dtype=torch.float64, limit=0.0)
    kept: list[float] = []
    for w.step, power in enumerate(powers, start=1):
        w.grad = cases.gaussian(*w.param.shape, seed=w.step) * 2.0**power
        w.param.zero_()
        free = w.clone()
        moved, limit = rest(w, residual=residual, growth=GROWTH)
        free.limit.zero_()
        unlimited, _ = rest(free, residual=residual, growth=GROWTH)
        assert abs(moved - limit) <= error(w)
        allowed = min(unlimited, GROWTH * kept[-1]) if kept else unlimited
        assert abs(limit - allowed) <= error(free) + error(w)
        kept.append(limit)


@every_rule
@every_side
@every_limited
def test_shrinking_is_left_alone(residual: str, side: str, rule: str) -> None:
    """A limit that does not bind changes not a bit, and is replaced by the norm of the step."""
    limited = weight(SHAPE, side=side, rule=rule, limit=1e6)
    free = limited.clone()
    free.limit = None
    after = stepped(limited, residual=residual, rule=rule, lr=0.25)
    assert checks.same_bits(after.param, stepped(free, residual=residual, rule=rule, lr=0.25).param)
    assert 0 < float(after.limit) < 1e6


@every_limited
def test_a_previous_norm_of_rounding_size_says_nothing(residual: str) -> None:
    """Zero, at first or after a gradient of zeros, or below 1e-12 of each entry: the next step is free."""
    floor = 1e-12 * sqrt(SHAPE.met * SHAPE.other)
    free = stepped(weight(SHAPE, limit=0.0), residual=residual, lr=0.25)
    assert float(free.limit) > 1
    below = stepped(weight(SHAPE, limit=0.5 * floor), residual=residual, lr=0.25)
    assert checks.same_bits(below.state(), free.state())
    above = stepped(weight(SHAPE, limit=2 * floor), residual=residual, lr=0.25)
    expected = GROWTH * float(torch.tensor(2 * floor, dtype=torch.float32))
    assert abs(float(above.limit) - expected) <= U32 * expected


@every_limited
def test_a_gradient_of_zeros_does_not_trap(residual: str) -> None:
    w = weight(SHAPE, limit=5.0)
    grad, w.grad = w.grad, torch.zeros_like(w.grad)
    assert take(w, residual=residual, lr=0.25)
    w.grad = grad
    assert float(w.limit) == 0
    w.step += 1
    free = w.clone()
    free.limit.zero_()
    assert take(w, residual=residual, lr=0.25) and take(free, residual=residual, lr=0.25)
    assert checks.same_bits(w.state(), free.state())


@every_limited
def test_a_constant_gradient_is_not_limited(residual: str) -> None:
    """The bias correction stands within N: with one gradient for ever N and |S| are constant, from the first step on,
    so that nothing is damped; without it the factor would fall to 0.53 in step 9."""
    w = weight(SHAPE, dtype=torch.float64, limit=0.0)
    w.exp_avg.zero_()
    w.exp_avg_sq.zero_()
    norms = []
    for w.step in range(1, 50):
        norms.append(rest(w, residual=residual, growth=1.0 + 2 * U32)[1])
    assert max(norms) - min(norms) <= 4 * len(norms) * U32 * norms[0]


@every_limited
def test_each_weight_has_its_own(residual: str) -> None:
    weights = [weight(SHAPE, limit=limit, seed=i) for i, limit in enumerate((0.0, 2.0, 1e6))]
    together = [w.clone() for w in weights]
    assert take(*together, residual=residual, lr=0.25)
    alone = [stepped(w, residual=residual, lr=0.25).state() for w in weights]
    assert checks.same_bits([w.state() for w in together], alone)


@every_limited
def test_growth_is_the_callers(residual: str) -> None:
    for growth in (1.0, 1.25, 1.5):
        after = stepped(weight(SHAPE, limit=1.5), residual=residual, lr=0.25, growth=growth)
        assert abs(float(after.limit) - 1.5 * growth) <= U32 * 1.5 * growth
