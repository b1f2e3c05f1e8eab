"""Warm starts: what a basis may be, and that fresh columns let new directions in."""

from __future__ import annotations

import lowrank_core
import pytest
import torch
from lowrank_core.reference import rsvd as reference
from testing import cases, checks, layouts, tolerance
from testing.cases import Case
from torch import Tensor

DTYPES = (torch.float32, torch.float64)
REFRESHES, RANK = 6, 4


def overlap(exact: Tensor, q: Tensor) -> float:
    """‖Eᵀ q‖_F² / r: 1 for equal spaces, 0 for orthogonal ones."""
    return tolerance.norm(exact.mT @ q.double()) ** 2 / q.shape[-1]


def _spec_matrix() -> tuple[Tensor, Tensor]:
    """64 x 48 with a log-spaced spectrum, and its left vectors."""
    a = cases.decaying(64, 48)
    return a, torch.linalg.svd(a).U


def refresh(a: Tensor, basis: Tensor, oversample: int, *, new_seeds: bool) -> list[float]:
    """The overlap with the leading space after each refresh of one power iteration."""
    leading = torch.linalg.svd(a.double()).U[:, :RANK]
    seen = []
    for number in range(REFRESHES):
        seed = number if new_seeds else 0
        basis = lowrank_core.range_finder(a, RANK, oversample=oversample, niter=1, basis=basis, seed=seed)
        seen.append(overlap(leading, basis))
    return seen


@pytest.mark.parametrize("new_seeds", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fresh_columns_find_the_leading_space(dtype: torch.dtype, new_seeds: bool) -> None:
    """Started exactly in the singular space 11-14, where the leading one is orthogonal to all that it knows."""
    a, vectors = _spec_matrix()
    seen = refresh(a.to(dtype), vectors[:, 10:14].to(dtype), RANK, new_seeds=new_seeds)
    assert seen[-1] > 0.99


def test_without_fresh_columns_it_stays_where_it_is() -> None:
    """The reason for them: with nothing but rounding to start from, five refreshes see nothing of the leading space."""
    a, vectors = _spec_matrix()
    assert max(refresh(a, vectors[:, 10:14], 0, new_seeds=True)[:-1]) < 0.01


@pytest.mark.parametrize("dtype", (*DTYPES, torch.bfloat16), ids=str)
@pytest.mark.parametrize("niter", [1, 2])
@pytest.mark.parametrize("columns", [1, 3, 7, 12])
def test_warm_start_agrees_with_the_reference(columns: int, niter: int, dtype: torch.dtype) -> None:
    """Fewer columns than the rank, more of them than rank and oversampling together."""
    case = Case(61, 45, 5, 4)
    a, basis = cases.gaussian(case.m, case.n).to(dtype), cases.gaussian(case.m, columns, seed=1).to(dtype)
    options = {"oversample": case.oversample, "niter": niter, "basis": basis, "seed": 3, "precision": "highest"}
    width = min(max(case.rank, columns) + case.oversample, case.m, case.n)
    ours, exact = lowrank_core.rsvd(a, case.rank, **options), reference.rsvd(a, case.rank, **options)
    checks.assert_triplet(a, *ours, rank=case.rank, width=width)
    assert tolerance.norm(ours.s.double() - exact[1]) <= tolerance.singular_values(a, width, niter)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [44, 45, 46, 61, 100])
def test_a_basis_of_full_width_or_more_gives_the_exact_values(columns: int, dtype: torch.dtype) -> None:
    a, basis = cases.gaussian(61, 45).to(dtype), cases.gaussian(61, columns, seed=1).to(dtype)
    s = lowrank_core.rsvd(a, 5, oversample=10, niter=1, basis=basis, precision="highest").s
    exact = torch.linalg.svdvals(a.double())[:5]
    assert tolerance.norm(s.double() - exact) <= tolerance.singular_values(a, 45, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_exact_space_stays(dtype: torch.dtype) -> None:
    a = cases.decaying(80, 60).to(dtype)
    u, s, _ = torch.linalg.svd(a.double())
    ours = lowrank_core.rsvd(a, 6, niter=1, basis=u[:, :6].to(dtype), precision="highest")
    assert tolerance.norm(ours.s.double() - s[:6]) <= tolerance.singular_values(a, 16, 1)


BASES = {
    "zero": torch.zeros(40, 3),
    "repeated": torch.ones(40, 3),
    "one of rank two": cases.gaussian(40, 2) @ cases.gaussian(2, 3),
    "huge": 1e10 * cases.gaussian(40, 3),
    "tiny": 1e-10 * cases.gaussian(40, 3),
    "graded": cases.gaussian(40, 3) * torch.tensor([1e12, 1.0, 1e-12]),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", BASES)
def test_any_basis_will_do(name: str, dtype: torch.dtype) -> None:
    """The fresh columns alone find a matrix of lower rank than they are, whatever stands beside them."""
    a = (cases.gaussian(40, 4) @ cases.gaussian(4, 30)).to(dtype)
    ours = lowrank_core.rsvd(a, 4, oversample=12, niter=1, basis=BASES[name].to(dtype), precision="highest")
    checks.assert_triplet(a, *ours, rank=4, width=16)
    exact = torch.linalg.svdvals(a.double())[:4]
    assert tolerance.norm(ours.s.double() - exact) <= tolerance.singular_values(a, 16, 1)


@pytest.mark.parametrize("dtype", (*DTYPES, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_a_basis_of_any_dtype_and_strides(layout: str, dtype: torch.dtype) -> None:
    a, basis = cases.gaussian(61, 45).float(), cases.gaussian(61, 5, seed=1).to(dtype)
    plain = lowrank_core.range_finder(a, 5, niter=1, basis=basis, precision="highest")
    other = lowrank_core.range_finder(a, 5, niter=1, basis=layouts.LAYOUTS[layout](basis), precision="highest")
    assert checks.outside(plain, other) <= tolerance.singular_values(a, 15, 1)
    wide = basis.double() if dtype == torch.float64 else basis.float()
    assert checks.outside(lowrank_core.range_finder(a, 5, niter=1, basis=wide, precision="highest"), other) <= (
        tolerance.singular_values(a, 15, 1)
    )


def test_the_basis_is_left_alone() -> None:
    basis = cases.gaussian(61, 5, seed=1)
    before = basis.clone()
    lowrank_core.rsvd(cases.gaussian(61, 45), 5, niter=1, basis=basis)
    assert checks.same_bits(basis, before)


def test_a_warm_refresh_follows_a_moving_matrix() -> None:
    """Each step turns the matrix a little. One warm iteration then does no worse than two cold ones, in the mean."""
    a, step = cases.decaying(120, 90, decades=1.0), cases.gaussian(120, 90, seed=9)
    step *= 0.02 * tolerance.norm(a) / tolerance.norm(step)
    basis = lowrank_core.range_finder(a, 10)
    warm, cold = [], []
    for number in range(10):
        a = a + step * (1 if number % 2 else -1)
        basis = lowrank_core.range_finder(a, 10, niter=1, basis=basis, seed=number)
        fresh = lowrank_core.range_finder(a, 10, niter=2, seed=number)
        for q, errors in ((basis, warm), (fresh, cold)):
            errors.append(checks.outside(q, a))
    assert sum(warm) <= 1.02 * sum(cold)
