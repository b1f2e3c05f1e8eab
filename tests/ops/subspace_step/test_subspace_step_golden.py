"""Identities that hold exactly for a step in a subspace, up to the rounding that is derived beside each."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from subspace_cases import SECOND, SIDES, Shape, Weight, every_residual, every_rule, every_side, stepped, take, weight
from testing import cases, checks, tolerance
from torch import Tensor

U64 = tolerance.UNIT[torch.float64]
PURE: dict[str, Any] = {"lr": 1.0, "eps": 0.0}


def fresh(shape: Shape, *, side: str = "left", seed: int = 0, dtype: torch.dtype = torch.float64) -> Weight:
    """A zero weight, whose change is the step itself, before its first step, with an orthonormal basis."""
    w = weight(shape, side=side, step=1, orthonormal=True, seed=seed, dtype=dtype)
    for x in w.state():
        x.zero_()
    return w


def columns(x: Tensor, side: str) -> Tensor:
    """[met, other]: turned so that channels are columns."""
    return x if side == "left" else x.mT


def rounding(w: Weight, *sizes: Tensor, products: int = 1) -> float:
    """Of so many products with an orthonormal basis, in a Frobenius norm."""
    unit = tolerance.gamma(max(w.basis.shape) + 2, tolerance.factor_dtype(w.param.dtype))
    return 2 * products * unit * sum(tolerance.norm(x) for x in sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("basis", ["identity", "permutation"])
@every_side
def test_g1_a_full_permutation_is_adamw(side: str, basis: str, dtype: torch.dtype) -> None:
    size, steps = 12, 5
    w = weight(Shape(size, size, size), side=side, dtype=dtype)
    w.exp_avg.zero_()
    w.exp_avg_sq.zero_()
    eye = torch.eye(size, dtype=dtype)
    w.basis = eye if basis == "identity" else eye[torch.randperm(size, generator=torch.Generator().manual_seed(1))]
    theirs = torch.nn.Parameter(w.param.clone())
    optimizer = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.1)
    for w.step in range(1, steps + 1):
        w.grad = theirs.grad = cases.gaussian(size, size, seed=w.step).to(dtype)
        optimizer.step()
        assert take(w, lr=0.1, weight_decay=0.1)
    # Per step and side: 8 roundings of an update of at most some lr * 2, and 3 of the weight.
    unit, most = tolerance.UNIT[dtype], float(theirs.detach().abs().max()) + steps * 0.2
    assert float((w.param - theirs.detach()).abs().max()) <= 2 * steps * unit * (8 * 0.2 + 3 * most)


@every_side
def test_g2_the_first_step_has_a_known_length(side: str) -> None:
    w = fresh(Shape(23, 31, 7), side=side)
    after = stepped(w, lr=0.01, scale=0.25, eps=0.0)
    length = 0.01 * 0.25 * sqrt(7 * 31)  # N = sign(R), and |P N| = |N|
    assert abs(tolerance.norm(after.param) - length) <= rounding(w, after.param)
    signs = columns(after.exp_avg, side).sign()
    expected = -0.01 * 0.25 * w.basis @ signs
    assert tolerance.norm(columns(after.param, side) - expected) <= rounding(w, expected)


@every_rule
@every_side
def test_g3_the_change_stays_in_the_subspace(side: str, rule: str) -> None:
    rank = 4
    w = fresh(Shape(23, 31, rank), side=side)
    w.exp_avg_sq = w.exp_avg_sq if rule in SECOND else None
    for w.step in range(1, 8):
        w.grad = cases.gaussian(*w.param.shape, seed=w.step)
        assert take(w, lr=0.1, rule=rule)
    change = columns(w.param, side)
    bound = 7 * rounding(w, change)
    assert tolerance.norm(change - w.basis @ (w.basis.mT @ change)) <= bound
    assert float(torch.linalg.svdvals(change)[rank]) <= bound < tolerance.norm(change)


@every_rule
@every_side
@every_residual
def test_g4_signs_of_the_basis_do_not_matter(residual: str, side: str, rule: str) -> None:
    """Not even with moments, if these are turned as well: a sign is exact."""
    w = weight(Shape(45, 37, 6), side=side, rule=rule)
    sign = torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0, 1.0])
    turned = w.clone()
    turned.basis *= sign
    turned.exp_avg *= sign[:, None] if side == "left" else sign
    found = [stepped(x, lr=0.25, rule=rule, residual=residual).param for x in (w, turned)]
    assert checks.same_bits(*found)


@pytest.mark.parametrize("scale", [1.0, 0.25])
@every_side
def test_g5_a_full_basis_leaves_no_residual(side: str, scale: float) -> None:
    """kappa = 1: GaLore. kappa = scale: (1 - scale) phi G stays over, which is APOLLO's step of that scale."""
    w = weight(Shape(20, 31, 20), side=side, dtype=torch.float64, orthonormal=True)
    w.param.zero_()
    galore = stepped(w, lr=1.0, scale=scale).param
    paper = stepped(w, lr=1.0, scale=scale, residual="scaled", residual_scale=1.0).param
    assert tolerance.norm(paper - galore) <= rounding(w, galore, w.grad, products=3)
    code = stepped(w, lr=1.0, scale=scale, residual="scaled", residual_scale=scale).param
    rest = stepped(w, lr=1.0, scale=1.0 - scale, residual="channel").param
    assert tolerance.norm(code - galore - rest) <= rounding(w, galore, w.grad, products=3)


@every_side
def test_g6_the_first_scales_are_known(side: str) -> None:
    """phi_j = sqrt(r) / |R_j| before the first limit, and the constant below it."""
    rank, scale = 7, 0.75
    w = fresh(Shape(23, 31, rank), side=side)
    g = columns(w.grad, side)
    low = w.basis.mT @ g
    phi = sqrt(rank) / (low.norm(dim=0) + 1e-8)
    apollo = columns(stepped(w, **PURE, scale=scale, residual="channel").param, side)
    assert tolerance.norm(apollo + scale * phi * g) <= rounding(w, apollo)
    fira = columns(stepped(w, **PURE, scale=scale, residual="scaled").param, side)
    expected = scale * w.basis @ low.sign() + phi * (g - w.basis @ low)
    assert tolerance.norm(fira + expected) <= rounding(w, apollo, expected, products=2)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 8), st.sampled_from(SIDES), st.integers(0, 99))
def test_g8_a_channel_step_is_along_the_gradient(met: int, other: int, rank: int, side: str, seed: int) -> None:
    """Every channel is a multiple of that of -G that is not negative, whatever the moments and the basis."""
    w = weight(Shape(met, other, rank), side=side, dtype=torch.float64, seed=seed)
    w.param.zero_()
    change, g = (columns(x, side) for x in (stepped(w, lr=1.0, residual="channel").param, w.grad))
    along = -(change * g).sum(dim=0) / g.square().sum(dim=0)
    assert bool((along >= 0).all())
    assert bool(((change + along * g).abs() <= 2 * tolerance.gamma(met, torch.float64) * along * g.norm(dim=0)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_side
def test_g9_density_one_is_adamw_and_density_zero_is_sign_descent(side: str, dtype: torch.dtype) -> None:
    options = {"lr": 0.25, "weight_decay": 0.2, "residual": "sign", "residual_scale": 0.5}
    full = weight(Shape(40, 31, 40), side=side, dtype=dtype, orthonormal=True)
    whole, plain = (stepped(full, **{**options, "residual": residual}).param for residual in ("sign", "drop"))
    # What is left of G is rounding, whose sign counts for nothing; the tiles may be cut otherwise.
    assert tolerance.norm(whole - plain) <= rounding(full, plain)
    none = weight(Shape(40, 31, 0), side=side, dtype=dtype)
    keep = torch.tensor(1.0 - 0.25 * 0.2, dtype=dtype)
    assert checks.same_bits(stepped(none, **options).param, keep * none.param - 0.125 * none.grad.sign())


@every_side
def test_low_rank_gradients_leave_no_sign(side: str) -> None:
    """A gradient within the subspace: the sign of rounding noise is zero, and zero entries stay put."""
    w = weight(Shape(60, 45, 8), side=side, orthonormal=True)
    g = (w.basis.double() @ (w.basis.double().mT @ columns(w.grad.double(), side))).float()
    g[:, 7] = 0.0
    w.grad = g if side == "left" else g.mT.contiguous()
    with_sign, plain = (stepped(w, lr=0.25, residual=residual).param for residual in ("sign", "drop"))
    assert tolerance.norm(with_sign - plain) <= rounding(w, plain)


@every_rule
@every_residual
def test_climbing_is_descending_the_negative(residual: str, rule: str) -> None:
    w = weight(Shape(45, 37, 6), rule=rule)
    opposite = w.clone()
    opposite.grad.neg_()
    options = {"lr": 0.25, "rule": rule, "residual": residual}
    climbed, descended = stepped(w, **options, maximize=True), stepped(opposite, **options)
    assert checks.same_bits(climbed.state(), descended.state())


@every_rule
@every_residual
def test_sides_are_transposes(residual: str, rule: str) -> None:
    """A basis on the right is one on the left of the transposed matrices."""
    left = weight(Shape(45, 37, 6), rule=rule)
    right = left.map(lambda x: x.mT if x.shape != left.basis.shape else x)
    right.side = "right"
    right.exp_avg = right.exp_avg.contiguous()
    right.exp_avg_sq = None if right.exp_avg_sq is None else right.exp_avg_sq.contiguous()
    options = {"lr": 0.25, "rule": rule, "residual": residual}
    found = [columns(stepped(w, **options).param, w.side) for w in (left, right)]
    bound = 8 * rounding(left, found[0], left.grad)
    assert tolerance.norm(found[0] - found[1]) <= bound


@given(
    st.integers(1, 30), st.integers(1, 30), st.integers(1, 6), st.sampled_from(SIDES), st.integers(-20, 20),
    st.integers(0, 99),
)  # fmt: skip
def test_scaling_the_gradient(met: int, other: int, rank: int, side: str, power: int, seed: int) -> None:
    """By powers of two, with eps = 0: Adam's first step does not see it, not by a bit."""
    w = fresh(Shape(met, other, min(met, rank)), side=side, seed=seed, dtype=torch.float32)
    scaled = w.clone()
    scaled.grad *= 2.0**power
    assert checks.same_bits(stepped(w, **PURE).param, stepped(scaled, **PURE).param)
