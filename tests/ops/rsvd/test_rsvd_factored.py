"""factored_svd and orthonormalize against the reference."""

from __future__ import annotations

import math

import lowrank_core
import numpy as np
import pytest
import torch
from lowrank_core.reference import rsvd as reference
from testing import cases, checks, layouts, tolerance
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
METHODS = ("auto", "cholqr2", "householder", "newton_schulz")

# m, k, n: the inner dimension below, at and above min(m, n); one, none, and beyond the parallel thresholds.
PRODUCTS = [(40, 5, 30), (30, 5, 40), (40, 30, 30), (40, 31, 30), (17, 40, 15), (15, 40, 17), (5, 60, 5)]
PRODUCTS += [(1, 1, 1), (7, 1, 9), (1, 9, 1), (0, 3, 4), (4, 3, 0), (4, 0, 3), (0, 0, 0)]
PRODUCTS += [(cases.DEPTH + 1, cases.JACOBI + d, cases.BLOCK) for d in (-1, 0, 1)]


def product_bound(b: Tensor, a: Tensor) -> float:
    """Error of the values: those of two chained products and two QR, in the norms of the factors."""
    m, k, n = *b.shape[-2:], a.shape[-1]
    work = tolerance.factor_dtype(b.dtype)
    roots = math.sqrt(m) + math.sqrt(n) + 4 * math.sqrt(k)
    return 4 * tolerance.LAMBDA_NORM * max(roots, 1.0) * tolerance.UNIT[work] * tolerance.norm(b) * tolerance.norm(a)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", PRODUCTS, ids=str)
def test_factored_svd_agrees_with_the_reference(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    m, k, n = shape
    b, a = cases.gaussian(m, k).to(dtype), cases.gaussian(k, n, seed=1).to(dtype)
    product = b.double() @ a.double()
    for rank in {min(shape), min(shape) // 2, min(1, *shape)}:
        u, s, vh = lowrank_core.factored_svd(b, a, rank=rank)
        _, exact, _ = reference.factored_svd(b, a, rank=rank)
        assert (u.shape, s.shape, vh.shape) == ((m, rank), (rank,), (rank, n))
        assert u.dtype == s.dtype == vh.dtype == tolerance.factor_dtype(dtype)
        checks.assert_orthonormal(u, k)
        checks.assert_orthonormal(vh.mT, k)
        checks.assert_signs(u)
        bound = product_bound(b, a)
        assert tolerance.norm(s.double() - exact) <= bound
        assert tolerance.norm(u.double().mT @ product - s.double()[:, None] * vh.double()) <= bound
        assert tolerance.norm(product @ vh.double().mT - u.double() * s.double()) <= bound
    full = lowrank_core.factored_svd(b, a)
    assert full.s.shape == (min(shape),)
    assert checks.residual(product, *full) <= product_bound(b, a)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_factored_svd_of_dependent_factors(dtype: torch.dtype) -> None:
    b = cases.gaussian(40, 2) @ cases.gaussian(2, 6)
    for left, right in (
        (b, cases.gaussian(6, 30)),
        (cases.gaussian(40, 6), b.mT),
        (torch.zeros(40, 6), cases.gaussian(6, 30)),
        (b, torch.zeros(6, 30)),
        (cases.gaussian(40, 6) * torch.logspace(0, -10, 6), cases.gaussian(6, 30)),
    ):
        left, right = left.to(dtype), right.to(dtype)
        u, s, vh = lowrank_core.factored_svd(left, right)
        checks.assert_orthonormal(u)
        checks.assert_orthonormal(vh.mT)
        exact = torch.linalg.svdvals(left.double() @ right.double())[:6]
        assert tolerance.norm(s.double() - exact) <= product_bound(left, right)


def test_factored_svd_keeps_small_values() -> None:
    """Each value of a product of graded factors to its own relative size, although b @ a would round most away."""
    values = torch.tensor([1.0, 1e-9, 1e-18], dtype=torch.float64)
    b = cases.orthonormal(60, 3) * values
    s = lowrank_core.factored_svd(b, torch.eye(3, 40, dtype=torch.float64)).s
    assert bool(((s - values).abs() <= 4 * tolerance.gamma(60, torch.float64) * values).all())


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_factored_svd_of_any_strides(layout: str) -> None:
    b, a = cases.gaussian(31, 7, 2).float(), cases.gaussian(7, 23, 2, seed=1).float()
    make = layouts.LAYOUTS[layout]
    s = lowrank_core.factored_svd(make(b), make(a)).s
    assert tolerance.norm(s - reference.factored_svd(b, a)[1]) <= product_bound(b, a)


# ---- orthonormalize ------------------------------------------------------------------------------------------------

TALL = [(1, 1), (7, 1), (2, 2), (cases.TILE_ROWS, cases.TILE_ROWS), (cases.TILE_COLS + 1, cases.TILE_COLS)]
TALL += [(cases.PRIME, cases.VECTOR + d) for d in (-1, 0, 1)] + [(cases.DEPTH + d, cases.JACOBI) for d in (-1, 0, 1)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", TALL, ids=str)
def test_orthonormalize_agrees_with_the_reference(shape: tuple[int, int], dtype: torch.dtype, method: str) -> None:
    """Columns of condition number 10. The factor itself for all but Householder, whose signs are its own."""
    m, n = shape
    y = cases.with_spectrum(m, n, torch.logspace(0, -1, n, dtype=torch.float64)).to(dtype)
    q = lowrank_core.orthonormalize(y, method=method)
    assert q.shape == y.shape and q.dtype == tolerance.factor_dtype(dtype)
    checks.assert_orthonormal(q)
    exact = reference.orthonormalize(y, method=method)
    if method == "householder":
        q = q * torch.where((q * exact).sum(0) < 0, -1.0, 1.0)
    condition = float(torch.linalg.cond(y.double()))
    unit = tolerance.UNIT[tolerance.factor_dtype(dtype)]
    # Backward error of a QR or polar factorization, magnified by the condition number (Higham 2002, section 19.9).
    bound = tolerance.LAMBDA_NORM * (math.sqrt(m) + 2 * math.sqrt(n)) * unit * condition * math.sqrt(n)
    assert tolerance.norm(q.double() - exact) <= bound


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(0, 0), (5, 0), (3, 0, 0), (0, 4, 2)], ids=str)
def test_orthonormalize_nothing(method: str, shape: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        y = torch.zeros(shape, dtype=dtype)
        assert lowrank_core.orthonormalize(y, method=method).shape == shape


@pytest.mark.parametrize("method", ["auto", "householder"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dependent_columns_are_filled(dtype: torch.dtype, method: str) -> None:
    """Orthonormal, and the range of y is inside, whatever y lacks."""
    for y in (
        torch.zeros(30, 5),
        cases.gaussian(30, 2) @ cases.gaussian(2, 5),
        torch.cat([torch.zeros(30, 2), cases.gaussian(30, 3)], dim=1),
        torch.cat([cases.gaussian(30, 3), torch.zeros(30, 2)], dim=1),
        torch.eye(30, 5)[:, [0, 0, 1, 1, 2]],
        cases.gaussian(30, 5) * torch.logspace(0, -30, 5),
        cases.gaussian(1, 1).expand(30, 5),
    ):
        y = y.to(dtype)
        q = lowrank_core.orthonormalize(y, method=method)
        checks.assert_orthonormal(q)
        assert checks.outside(q, y) <= tolerance.coefficients(y, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("exponent", range(0, 17, 2))
def test_auto_is_orthonormal_at_every_condition_number(exponent: int, dtype: torch.dtype) -> None:
    """Across the limit of Cholesky QR: the fallback leaves no gap."""
    y = cases.decaying(80, 12, decades=float(exponent)).to(dtype)
    q = lowrank_core.orthonormalize(y)
    checks.assert_orthonormal(q)
    assert checks.outside(q, y) <= tolerance.coefficients(y, 12)


def _dependent() -> list[Tensor]:
    products = [cases.gaussian(50, 3, seed=seed) @ cases.gaussian(3, 5, seed=seed) for seed in range(10)]
    return [*products, torch.eye(9, 3)[:, [0, 1, 1]], torch.zeros(9, 3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "method",
    [
        "cholqr2",
        "newton_schulz",
    ],
)
def test_methods_that_need_independent_columns_say_so(method: str, dtype: torch.dtype) -> None:
    for y in _dependent():
        with pytest.raises(
            RuntimeError,
            match=f"orthonormalize: `y` must have linearly independent columns for method='{method}'; "
            "use method='auto', which fills the missing directions",
        ):
            lowrank_core.orthonormalize(y.to(dtype), method=method)


def test_one_dependent_member_refuses_the_batch() -> None:
    y = cases.gaussian(9, 3, 4)
    y[2, :, 1] = y[2, :, 0]
    with pytest.raises(RuntimeError, match="linearly independent"):
        lowrank_core.orthonormalize(y, method="cholqr2")
    checks.assert_orthonormal(lowrank_core.orthonormalize(y)[2])


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_finite_is_refused(method: str) -> None:
    """Also where the arithmetic would lose it: a column of NaN counts as one that depends on the others."""
    y = np.ones((6, 2))
    y[1] = 2.0
    y[3, 1] = math.nan
    with pytest.raises(ValueError, match="orthonormalize: `y` must be finite, got NaN or infinity"):
        lowrank_core.orthonormalize(y, method=method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_orthonormalize_of_any_strides(layout: str, method: str) -> None:
    """To the bit: the columns are copied before anything is done with them."""
    y = cases.gaussian(31, 7, 2).float()
    other = lowrank_core.orthonormalize(layouts.LAYOUTS[layout](y), method=method)
    assert other.is_contiguous()
    assert checks.same_bits(other, lowrank_core.orthonormalize(y, method=method))
