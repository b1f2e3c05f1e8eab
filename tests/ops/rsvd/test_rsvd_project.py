"""project and project_back: every pair of dtypes, layouts, broadcasting, adjointness."""

from __future__ import annotations

import lowrank_core
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lowrank_core import _core
from lowrank_core.reference import rsvd as reference
from testing import cases, checks, layouts, machine, tolerance
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIDES = ("left", "right")
SHAPES = [(1, 1, 1), (cases.PRIME, 5, 3), (3, 4, 0), (0, 4, 2), (4, 0, 2)]
SHAPES += [(cases.TILE_ROWS + d, cases.TILE_COLS - d, cases.VECTOR + d) for d in (-1, 0, 1)]
SHAPES += [(cases.DEPTH + d, 2 * cases.DEPTH - d, 8) for d in (-1, 0, 1)]


def operands(m: int, n: int, r: int, side: str, *batch: int) -> tuple[Tensor, Tensor]:
    """g [*batch, m, n] and a basis for it."""
    return cases.gaussian(m, n, *batch), cases.gaussian(m if side == "left" else n, r, seed=1)


def assert_product(ours: Tensor, left: Tensor, right: Tensor) -> None:
    """ours = left @ right in the dtype of ours, elementwise."""
    left, right = left.double(), right.double()
    assert bool(((ours.double() - left @ right).abs() <= tolerance.product(left, right, ours.dtype)).all())


def factors(x: Tensor, basis: Tensor, side: str, *, back: bool) -> tuple[Tensor, Tensor]:
    basis = basis.mT if back else basis
    return (basis.mT, x) if side == "left" else (x, basis)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("basis_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_pair_of_dtypes(dtype: torch.dtype, basis_dtype: torch.dtype, side: str) -> None:
    for m, n, r in SHAPES:
        g, basis = operands(m, n, r, side)
        g, basis = g.to(dtype), basis.to(basis_dtype)
        low = lowrank_core.project(g, basis, side=side)
        assert low.dtype == dtype and low.shape == ((r, n) if side == "left" else (m, r))
        full = lowrank_core.project_back(low, basis, side=side)
        assert full.dtype == dtype and full.shape == (m, n)
        # A float64 basis of a narrower g is read in the type that the product is accumulated in.
        read = basis if dtype == torch.float64 else basis.float()
        assert_product(low, *factors(g, read, side, back=False))
        assert_product(full, *factors(low, read, side, back=True))


@pytest.mark.parametrize("side", SIDES)
def test_agrees_with_the_reference(side: str) -> None:
    g, basis = operands(61, 45, 7, side, 2, 3)
    low = lowrank_core.project(g, basis, side=side)
    exact = reference.project(g, basis, side=side)
    bound = tolerance.gamma(61, torch.float64) * tolerance.norm(g) * tolerance.norm(basis)
    assert tolerance.norm(low - exact) <= bound
    back = lowrank_core.project_back(low, basis, side=side)
    assert tolerance.norm(back - reference.project_back(exact, basis, side=side)) <= 2 * bound * tolerance.norm(basis)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_any_strides_and_nan_around(layout: str, side: str) -> None:
    g, basis = (x.float() for x in operands(45, 37, 6, side, 2))
    make = layouts.LAYOUTS[layout]
    assert_product(lowrank_core.project(make(g), make(basis), side=side), *factors(g, basis, side, back=False))
    low = lowrank_core.project(g, basis, side=side)
    assert_product(lowrank_core.project_back(make(low), make(basis), side=side), *factors(low, basis, side, back=True))


@pytest.mark.parametrize("side", SIDES)
def test_one_basis_for_a_batch_or_one_for_each(side: str) -> None:
    g, basis = operands(30, 20, 4, side, 2, 3)
    each = basis.expand(2, 3, *basis.shape)
    for x, function in (
        (g, lowrank_core.project),
        (lowrank_core.project(g, basis, side=side), lowrank_core.project_back),
    ):
        shared = function(x, basis, side=side)
        assert checks.same_bits(shared, function(x, each, side=side))
        assert checks.same_bits(shared, function(x, each.contiguous(), side=side))
        from_numpy = function(x.numpy(), basis.numpy(), side=side)
        assert isinstance(from_numpy, np.ndarray) and checks.same_bits(shared, from_numpy)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 8), st.sampled_from(SIDES), st.integers(0, 99))
def test_projection_is_adjoint_to_its_way_back(m: int, n: int, r: int, side: str, seed: int) -> None:
    """<project(g), x> = <g, project_back(x)>."""
    g, basis = operands(m, n, r, side)
    x = cases.gaussian(*((r, n) if side == "left" else (m, r)), seed=seed)
    left = (lowrank_core.project(g, basis, side=side) * x).sum()
    right = (g * lowrank_core.project_back(x, basis, side=side)).sum()
    size = tolerance.norm(g) * tolerance.norm(basis) * tolerance.norm(x)
    assert abs(float(left - right)) <= 4 * tolerance.gamma(m + n + r, torch.float64) * size


@pytest.mark.parametrize("side", SIDES)
def test_there_and_back_is_a_projection(side: str) -> None:
    """For an orthonormal basis: what comes back, projected again, gives the same coordinates."""
    g, _ = operands(60, 50, 1, side)
    basis = cases.orthonormal(60 if side == "left" else 50, 5)
    low = lowrank_core.project(g, basis, side=side)
    again = lowrank_core.project(lowrank_core.project_back(low, basis, side=side), basis, side=side)
    assert tolerance.norm(again - low) <= 4 * tolerance.gamma(60, torch.float64) * tolerance.norm(g)


@pytest.mark.parametrize("level", _core.isa_levels())
@pytest.mark.parametrize("side", SIDES)
def test_medium_rounds_the_operands_or_nothing(side: str, level: str) -> None:
    """Where bfloat16 is faster, products of float32 have the error of two roundings; elsewhere and for float64 none."""
    g, basis = operands(100, 90, 9, side)
    with machine.isa(level):
        exactly = lowrank_core.project(g.float(), basis.float(), side=side)
        with machine.matmul_precision("medium"):
            coarse = lowrank_core.project(g.float(), basis.float(), side=side)
            sharp = lowrank_core.project(g, basis, side=side)
        assert checks.same_bits(sharp, lowrank_core.project(g, basis, side=side))
    rounded = [x.float().bfloat16().double() for x in factors(g, basis, side, back=False)]
    of_rounded = (coarse.double() - rounded[0] @ rounded[1]).abs() <= tolerance.product(*rounded, torch.float32)
    assert checks.same_bits(coarse, exactly) or bool(of_rounded.all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    g, basis = operands(30, 20, 4, "left")
    g[3, 7] = bad
    low = lowrank_core.project(g, basis, side="left")
    assert not low[:, 7].isfinite().any() and bool(low[:, :7].isfinite().all()) and bool(low[:, 8:].isfinite().all())
