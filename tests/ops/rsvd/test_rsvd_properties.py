"""Identities that hold for every sketch, on matrices that Hypothesis draws."""

from __future__ import annotations

import math

import lowrank_core
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lowrank_core.reference import rsvd as reference
from testing import cases, checks, tolerance
from torch import Tensor

DTYPES = (torch.float32, torch.float64)


@st.composite
def problems(draw: st.DrawFn, *, max_rank_share: float = 1.0) -> tuple[Tensor, int, int, int, int]:
    """(a, rank, oversample, niter, seed): any shape up to 70, any decay, full rank or not, rows and columns of
    any size."""
    m, n = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    dtype = draw(st.sampled_from(DTYPES))
    inner = max(1, int(max_rank_share * draw(st.integers(1, min(m, n)))))
    values = torch.logspace(0, -draw(st.sampled_from([0.0, 1.0, 4.0])), inner, dtype=torch.float64)
    a = cases.with_spectrum(m, n, values, seed=draw(st.integers(0, 99)))
    if draw(st.booleans()):
        a = a * torch.logspace(0, -2, m, dtype=torch.float64)[:, None]
    a = a * 2.0 ** draw(st.integers(-20, 20))
    rank = draw(st.integers(0, min(m, n)))
    return a.to(dtype), rank, draw(st.integers(0, 12)), draw(st.integers(0, 3)), draw(st.integers(0, 2**63 - 1))


@given(problems())
def test_every_triplet_is_sound(problem: tuple[Tensor, int, int, int, int]) -> None:
    """Shapes, orthonormality, order, signs, a V = U S or aᵀ U = V S; interlacing: no value exceeds the exact one."""
    a, rank, oversample, niter, seed = problem
    triplet = lowrank_core.rsvd(a, rank, oversample=oversample, niter=niter, seed=seed, precision="highest")
    width = min(rank + oversample, *a.shape)
    checks.assert_triplet(a, *triplet, rank=rank, width=width)
    exact = torch.linalg.svdvals(a.double())[:rank]
    assert bool((triplet.s.double() <= exact + tolerance.coefficients(a, min(2 * width, *a.shape))).all())


@given(problems())
def test_pythagoras(problem: tuple[Tensor, int, int, int, int]) -> None:
    """‖a‖² = ‖s‖² + ‖a - u s vh‖²: the truncation is a projection."""
    a, rank, oversample, niter, seed = problem
    u, s, vh = lowrank_core.rsvd(a, rank, oversample=oversample, niter=niter, seed=seed, precision="highest")
    total, kept, rest = tolerance.norm(a) ** 2, tolerance.norm(s) ** 2, checks.residual(a, u, s, vh) ** 2
    # Each norm is off by `coefficients`, its square by twice that times a norm that is at most ‖a‖.
    bound = 2 * 2 * tolerance.coefficients(a, min(2 * (rank + oversample), *a.shape)) * math.sqrt(total)
    assert abs(total - kept - rest) <= bound


@given(problems(max_rank_share=0.5), st.integers(0, 20))
def test_exact_rank_is_recovered(problem: tuple[Tensor, int, int, int, int], spare: int) -> None:
    """A matrix of rank rho <= width is its own best approximation; vectors in general position, width >= rho + 8."""
    a, _, _, niter, seed = problem
    rho = min(int(torch.linalg.matrix_rank(a.double())) + 8 + spare, *a.shape)
    triplet = lowrank_core.rsvd(a, rho, oversample=0, niter=niter, seed=seed, precision="highest")
    # Directions below the rounding of a do not count as rank.
    assert checks.residual(a, *triplet) <= tolerance.singular_values(a, rho, niter) + _below_rounding(a, rho)


def _below_rounding(a: Tensor, rank: int) -> float:
    return tolerance.norm(torch.linalg.svdvals(a.double())[rank:])


@given(problems(), st.integers(-60, 60))
def test_powers_of_two_pass_through_exactly(problem: tuple[Tensor, int, int, int, int], exponent: int) -> None:
    a, rank, oversample, niter, seed = problem
    options = {"oversample": oversample, "niter": niter, "seed": seed, "precision": "highest"}
    plain = lowrank_core.rsvd(a, rank, **options)
    scaled = lowrank_core.rsvd(a * 2.0**exponent, rank, **options)
    assert checks.same_bits((scaled.u, scaled.vh), (plain.u, plain.vh))
    assert checks.same_bits(scaled.s, plain.s * 2.0**exponent)


@given(problems(), st.floats(0.1, 10.0), st.sampled_from([-1.0, 1.0]))
def test_scaling_scales_the_values(problem: tuple[Tensor, int, int, int, int], factor: float, sign: float) -> None:
    a, rank, oversample, niter, seed = problem
    options = {"oversample": oversample, "niter": niter, "seed": seed, "precision": "highest"}
    plain, scaled = lowrank_core.rsvd(a, rank, **options), lowrank_core.rsvd(a * (sign * factor), rank, **options)
    width = min(rank + oversample, *a.shape)
    bound = 2 * factor * tolerance.singular_values(a, width, niter)
    assert tolerance.norm(scaled.s.double() - factor * plain.s.double()) <= bound


@given(problems())
def test_range_finder_is_the_left_factor(problem: tuple[Tensor, int, int, int, int]) -> None:
    a, rank, oversample, niter, seed = problem
    options = {"oversample": oversample, "niter": niter, "seed": seed, "precision": "highest"}
    assert checks.same_bits(lowrank_core.range_finder(a, rank, **options), lowrank_core.rsvd(a, rank, **options).u)


@given(st.integers(1, 4), st.integers(1, 3), st.booleans(), st.sampled_from(DTYPES), st.integers(0, 99))
def test_two_blocks_of_full_width_are_exact(half: int, niter: int, tall: bool, dtype: torch.dtype, seed: int) -> None:
    """The block Krylov space then holds every row, or column, of a."""
    thin, long = 2 * half, 150 * half
    a = cases.with_spectrum(long, thin, torch.logspace(0, -2, thin, dtype=torch.float64), seed=seed).to(dtype)
    a = a if tall else a.mT
    assert reference.krylov_pays(*a.shape, half)
    out = lowrank_core.rsvd(a, half, oversample=0, niter=niter, seed=seed, precision="highest")
    exact = torch.linalg.svdvals(a.double())[:half]
    assert tolerance.norm(out.s.double() - exact) <= tolerance.singular_values(a, thin, niter)


@pytest.mark.parametrize("dtype", (*DTYPES, torch.bfloat16, torch.float16), ids=str)
def test_half_precision_is_factored_in_float32(dtype: torch.dtype) -> None:
    """Reading bfloat16 or float16 is exact: the same bits as from the float32 copy."""
    a = cases.decaying(60, 45).to(dtype)
    wide = a if dtype == torch.float64 else a.float()
    for function in (lowrank_core.rsvd, lowrank_core.range_finder):
        x, y = function(a, 7, precision="highest"), function(wide, 7, precision="highest")
        assert checks.same_bits(x if isinstance(x, Tensor) else tuple(x), y if isinstance(y, Tensor) else tuple(y))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_works_where_torch_raises(dtype: torch.dtype) -> None:
    a = cases.decaying(30, 20).to(dtype)
    with pytest.raises(RuntimeError):
        torch.svd_lowrank(a)
    u, s, v = lowrank_core.svd_lowrank(a)
    checks.assert_triplet(a, u, s, v.mT, rank=6, width=6)
