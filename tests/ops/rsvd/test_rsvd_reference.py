"""The fixed-rank decompositions against the float64 reference: shapes, dtypes, layouts, precision."""

from __future__ import annotations

import lowrank_core
import numpy as np
import pytest
import torch
from lowrank_core.reference import rsvd as reference
from testing import cases, checks, layouts, tolerance
from testing.cases import CASES, Case
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check(a: Tensor, case: Case, *, niter: int = 2, seed: int = 0) -> None:
    options = {"oversample": case.oversample, "niter": niter, "seed": seed, "precision": "highest"}
    ours = lowrank_core.rsvd(a, case.rank, **options)
    checks.assert_triplet(a, *ours, rank=case.rank, width=case.width)
    exact = reference.rsvd(a, case.rank, **options)
    bound = tolerance.singular_values(a, case.width, niter)
    assert tolerance.norm(ours.s.double() - exact[1]) <= bound
    # The optimum given the sketch: truncation errors agree although vectors of equal values may not.
    assert abs(checks.residual(a, *ours) - checks.residual(a, *exact)) <= bound + tolerance.coefficients(a, case.width)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=cases.identify)
def test_rsvd_agrees_with_the_reference(case: Case, dtype: torch.dtype) -> None:
    check(cases.gaussian(case.m, case.n).to(dtype), case)


@pytest.mark.parametrize("niter", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_number_of_power_iterations(niter: int, dtype: torch.dtype) -> None:
    for decades in (0.5, 3.0):
        a = cases.decaying(120, 90, decades=decades).to(dtype)
        check(a, Case(120, 90, 12, 6), niter=niter, seed=7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_subspace_agrees_with_the_reference(dtype: torch.dtype) -> None:
    """Vectors are compared where the spectrum separates their span; the bound grows with 1 / gap."""
    values = torch.tensor([8.0, 7.0, 6.0, 5.0] + [1.0] * 56, dtype=torch.float64)
    a = cases.with_spectrum(80, 60, values).to(dtype)
    u, _, vh = lowrank_core.rsvd(a, 4, precision="highest")
    ru, _, rvh = reference.rsvd(a, 4)
    bound = tolerance.singular_values(a, 14, 2) / (5.0 - 1.0)
    assert checks.outside(ru, u) <= bound
    assert checks.outside(rvh.mT, vh.mT) <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_full_width_is_the_exact_decomposition(dtype: torch.dtype) -> None:
    a = cases.decaying(50, 30).to(dtype)
    ours = lowrank_core.rsvd(a, 30, precision="highest")
    exact = torch.linalg.svdvals(a.double())
    assert tolerance.norm(ours.s.double() - exact) <= tolerance.singular_values(a, 30, 2)
    assert checks.residual(a, *ours) <= tolerance.singular_values(a, 30, 2)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_strides_do_not_matter(layout: str, dtype: torch.dtype) -> None:
    """Read from memory surrounded by NaN: nothing outside the matrix may enter. Sums may run in another order."""
    case = Case(61, 45, 7, 5)
    plain = cases.gaussian(case.m, case.n, 2, 3).to(dtype)
    check(layouts.LAYOUTS[layout](plain), case)


def test_a_broadcast_matrix_has_rank_one() -> None:
    """A stride of 0."""
    row = cases.gaussian(1, 40)
    for a in (row.expand(30, 40), row.mT.expand(40, 30)):
        for niter in (0, 1, 2):
            s = lowrank_core.rsvd(a, 3, niter=niter).s
            bound = tolerance.singular_values(a, 13, niter)
            assert abs(float(s[0]) - 30**0.5 * tolerance.norm(row)) <= bound
            assert float(s[1]) <= bound


def test_negative_strides() -> None:
    a = cases.gaussian(33, 21).numpy()
    view = layouts.reversed_view(a)
    assert view.strides[0] < 0 and view.strides[1] < 0
    ours = lowrank_core.rsvd(view, 5)
    bound = tolerance.singular_values(torch.from_numpy(a), 15, 2)
    assert np.abs(ours.s - lowrank_core.rsvd(a, 5).s).max() <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_outputs_may_be_strided_and_keep_to_themselves(dtype: torch.dtype) -> None:
    a = cases.gaussian(37, 29, 2).to(dtype)
    plain = lowrank_core.rsvd(a, 6, precision="highest")
    u, vh = (layouts.strided(torch.zeros(2, *shape, dtype=dtype)) for shape in ((37, 6), (6, 29)))
    s = layouts.strided(torch.zeros(2, 1, 6, dtype=dtype))[:, 0]
    lowrank_core._core.rsvd(u, s, vh, a)
    assert checks.same_bits((u.contiguous(), s.contiguous(), vh.contiguous()), tuple(plain))
    assert all(layouts.outside_is_nan(x) for x in (u, s, vh))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_svd_lowrank_is_rsvd_under_torchs_names(dtype: torch.dtype) -> None:
    a = cases.decaying(40, 33).to(dtype)
    u, s, v = lowrank_core.svd_lowrank(a, 7, 3, seed=4)
    assert u.is_contiguous() and v.is_contiguous()
    same = lowrank_core.rsvd(a, 7, oversample=0, niter=3, seed=4)
    assert checks.same_bits((u, s, v.mT.contiguous()), tuple(same))
    defaults = lowrank_core.svd_lowrank(a)
    assert checks.same_bits(defaults[1], lowrank_core.rsvd(a, 6, oversample=0, niter=2).s)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_range_finder_is_the_left_factor(layout: str, dtype: torch.dtype) -> None:
    for case in CASES[::2]:
        a = layouts.LAYOUTS[layout](cases.gaussian(case.m, case.n).to(dtype))
        for niter in (0, 1, 2):
            options = {"oversample": case.oversample, "niter": niter, "seed": 3, "precision": "highest"}
            q = lowrank_core.range_finder(a, case.rank, **options)
            assert checks.same_bits(q, lowrank_core.rsvd(a, case.rank, **options).u)


@pytest.mark.parametrize("niter", [0, 1, 2])
def test_medium_costs_no_more_than_the_rounding(niter: int) -> None:
    for decades in (0.5, 2.0, 5.0):
        a = cases.decaying(150, 110, decades=decades).float()
        sharp, coarse = (
            checks.residual(a, *lowrank_core.rsvd(a, 10, niter=niter, precision=p)) for p in ("highest", "medium")
        )
        assert coarse <= sharp + tolerance.medium(a)
        checks.assert_triplet(a, *lowrank_core.rsvd(a, 10, niter=niter, precision="medium"), rank=10, width=20)


def test_high_is_highest() -> None:
    a = cases.decaying(150, 110).float()
    one, two = (lowrank_core.rsvd(a, 10, precision=p) for p in ("highest", "high"))
    assert checks.same_bits(tuple(one), tuple(two))


def test_float64_is_float64_at_every_precision() -> None:
    a = cases.decaying(60, 40)
    sharp, coarse = (lowrank_core.rsvd(a, 5, precision=p) for p in ("highest", "medium"))
    assert checks.same_bits(tuple(sharp), tuple(coarse))
