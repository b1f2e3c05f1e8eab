"""qb: the smallest rank that reaches a target, against the reference and by its own promises."""

from __future__ import annotations

import warnings

import lowrank_core
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lowrank_core.reference import rsvd as reference
from testing import cases, checks, layouts, tolerance
from torch import Tensor

DTYPES = (torch.float32, torch.float64)
FINEST = {torch.float32: 2e-3, torch.float64: 2.1e-7}  # relative errors that the energy left can resolve


def error(a: Tensor, q: Tensor, b: Tensor) -> float:
    """‖a - q b‖_F / ‖a‖_F."""
    return tolerance.norm(a.double() - q.double() @ b.double()) / tolerance.norm(a)


def assert_sound(a: Tensor, out: lowrank_core.QB) -> None:
    q, b, captured = out
    m, n = a.shape
    k = q.shape[1]
    assert q.shape == (m, k) and b.shape == (k, n)
    assert q.dtype == b.dtype == tolerance.factor_dtype(a.dtype)
    checks.assert_orthonormal(q, min(m, n))
    assert isinstance(captured, float) and 0.0 <= captured <= 1.0
    rounding = 2 * tolerance.coefficients(a, min(m, n))
    lengths = torch.linalg.vector_norm(b.double(), dim=1)
    assert bool((lengths.diff() <= rounding).all())
    gram = b.double() @ b.double().mT
    assert tolerance.norm(gram - torch.diag(gram.diagonal())) <= rounding * tolerance.norm(a)
    assert tolerance.norm(q.double().mT @ a.double() - b.double()) <= rounding
    if tolerance.norm(a) > 0:
        assert abs(captured - (tolerance.norm(b) / tolerance.norm(a)) ** 2) <= rounding / tolerance.norm(a)


TOLERANCES = [
    (dtype, tol) for dtype in DTYPES for tol in (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-5) if tol > FINEST[dtype]
]


@pytest.mark.parametrize(("dtype", "tol"), TOLERANCES, ids=str)
def test_the_rank_reaches_the_error_and_one_less_does_not(dtype: torch.dtype, tol: float) -> None:
    for a in (cases.decaying(90, 70, decades=6), cases.decaying(70, 90, decades=3), cases.gaussian(60, 60)):
        a = a.to(dtype)
        for block in (1, 7, 16, 100):
            out = lowrank_core.qb(a, tol=tol, block=block)
            assert_sound(a, out)
            slack = 2 * tolerance.coefficients(a, min(a.shape)) / tolerance.norm(a)
            k = out.q.shape[1]
            assert error(a, *out[:2]) ** 2 <= tol**2 + slack
            assert error(a, out.q[:, : k - 1], out.b[: k - 1]) ** 2 >= tol**2 - slack


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("energy", [0.01, 0.5, 0.9, 0.99])
def test_agrees_with_the_reference(energy: float, dtype: torch.dtype) -> None:
    for decades in (0.3, 3.0):
        a = cases.decaying(80, 61, decades=decades).to(dtype)
        for options in ({}, {"block": 5, "niter": 0}, {"block": 3, "niter": 2, "seed": 7}):
            ours, exact = lowrank_core.qb(a, energy=energy, **options), reference.qb(a, energy=energy, **options)
            assert ours.q.shape == exact[0].shape
            rounding = tolerance.singular_values(a, 61, 2) / tolerance.norm(a)
            assert abs(ours.captured - exact[2]) <= 2 * rounding
            assert ours.captured >= energy - rounding


def test_energy_and_tol_say_the_same() -> None:
    a = cases.decaying(80, 61)
    assert checks.same_bits(lowrank_core.qb(a, tol=0.3)[:2], lowrank_core.qb(a, energy=1 - 0.3**2)[:2])


@pytest.mark.parametrize("dtype", (*DTYPES, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("rank", [1, 5, 16, 17])
def test_exact_rank_is_found(rank: int, dtype: torch.dtype) -> None:
    a = (cases.orthonormal(90, rank) @ cases.orthonormal(70, rank, seed=1).mT).to(dtype)
    out = lowrank_core.qb(a, tol=0.02)
    assert_sound(a, out)
    assert out.q.shape[1] == rank


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exact_rank_is_found_when_all_is_asked_for(dtype: torch.dtype) -> None:
    a = cases.with_spectrum(90, 70, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert lowrank_core.qb(a, energy=1.0).q.shape[1] == 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_growing_beyond_the_rank(dtype: torch.dtype) -> None:
    """A few nonzero rows, and all of the energy: blocks then find nothing new."""
    for seed in range(40):
        draw = cases.generator(seed)
        a = torch.from_numpy(draw.standard_normal((50, 40)) * (draw.random(50) < 0.3)[:, None]).to(dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            for block in (3, 7, 16):
                assert_sound(a, lowrank_core.qb(a, energy=1.0, block=block))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_and_empty(dtype: torch.dtype) -> None:
    for shape in ((7, 5), (0, 5), (5, 0), (0, 0)):
        out = lowrank_core.qb(torch.zeros(shape, dtype=dtype), energy=0.9)
        assert out.q.shape == (shape[0], 0) and out.b.shape == (0, shape[1]) and out.captured == 1.0


@pytest.mark.parametrize("cap", [0, 1, 5, 16, 20])
def test_max_rank_is_kept(cap: int) -> None:
    a = cases.gaussian(60, 50)
    out = lowrank_core.qb(a, energy=0.999, max_rank=cap)
    assert out.q.shape[1] == cap
    assert_sound(a, out)
    assert out.captured < 0.999


def test_full_rank_is_reached() -> None:
    a = cases.gaussian(40, 25)
    out = lowrank_core.qb(a, energy=1.0)
    assert out.q.shape[1] == 25
    assert_sound(a, out)


@given(
    st.integers(1, 50),
    st.integers(1, 50),
    st.floats(0.05, 1 - 1e-9),
    st.integers(1, 20),
    st.integers(0, 2),
    st.integers(0, 99),
)
def test_any_target(m: int, n: int, energy: float, block: int, niter: int, seed: int) -> None:
    a = cases.decaying(m, n, decades=2.0, seed=seed)
    out = lowrank_core.qb(a, energy=energy, block=block, niter=niter, seed=seed)
    assert_sound(a, out)
    rounding = 2 * tolerance.coefficients(a, min(m, n)) / tolerance.norm(a)
    assert out.captured >= energy - rounding or out.q.shape[1] == min(m, n)
    optimal = torch.linalg.svdvals(a).square().cumsum(0) / tolerance.norm(a) ** 2
    assert out.q.shape[1] >= int((optimal < energy - rounding).sum()) + (energy > rounding) - 1


def test_a_float32_target_below_the_resolution_warns() -> None:
    a = cases.decaying(60, 50).float()
    with pytest.warns(RuntimeWarning, match=r"qb: a relative error of 1\.0e-03 is below the resolution of float32"):
        out = lowrank_core.qb(a, tol=1e-3)
    assert_sound(a, out)
    lowrank_core.qb(a, tol=2e-3 * 1.001)  # and no warning, which would be an error here
    with pytest.warns(RuntimeWarning):
        lowrank_core.qb(a.bfloat16(), energy=1.0)


def test_a_float64_target_below_the_resolution_is_met_or_warned_of() -> None:
    values = torch.full((100,), 3e-9, dtype=torch.float64)
    values[0] = 1.0
    a, tol = torch.diag(values), 1e-8
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = lowrank_core.qb(a, tol=tol, block=1)
    assert caught or error(a, *out[:2]) <= tol


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_strides_do_not_matter(layout: str) -> None:
    a = cases.decaying(61, 45).float()
    out = lowrank_core.qb(layouts.LAYOUTS[layout](a), energy=0.9)
    assert_sound(a, out)
    assert out.q.shape == lowrank_core.qb(a, energy=0.9).q.shape


def test_results_own_their_memory() -> None:
    """No view that keeps a buffer of full rank alive."""
    q, b, _ = lowrank_core.qb(cases.gaussian(60, 50), energy=0.5)
    assert q.untyped_storage().nbytes() == q.numel() * 8 and b.untyped_storage().nbytes() == b.numel() * 8
    nq, nb, _ = lowrank_core.qb(cases.gaussian(60, 50).numpy(), energy=0.5)
    assert nq.flags.owndata and nb.flags.owndata


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_not_finite_is_refused(dtype: type, bad: float) -> None:
    a = np.ones((6, 5), dtype=dtype)
    a[3, 2] = bad
    with pytest.raises(ValueError, match="qb: `a` must be finite"):
        lowrank_core.qb(a, energy=0.5)


REFUSED = (
    ({}, "exactly one of `energy` and `tol` must be given, got None and None"),
    ({"energy": 0.5, "tol": 0.5}, "exactly one of `energy` and `tol` must be given, got 0.5 and 0.5"),
    ({"energy": 0.0}, r"`energy` must be in \(0, 1\], got 0.0"),
    ({"energy": 1.5}, r"`energy` must be in \(0, 1\], got 1.5"),
    ({"energy": float("nan")}, r"`energy` must be in \(0, 1\], got nan"),
    ({"tol": -0.1}, r"`tol` must be in \[0, 1\), got -0.1"),
    ({"tol": 1.0}, r"`tol` must be in \[0, 1\), got 1.0"),
    ({"energy": 0.5, "max_rank": 6}, r"`max_rank` must be between 0 and 5, got 6 for shape \[7, 5\]"),
    ({"energy": 0.5, "max_rank": -1}, "`max_rank` must be between 0 and 5, got -1"),
    ({"energy": 0.5, "block": 0}, "`block` must be >= 1, got 0"),
    ({"energy": 0.5, "niter": -1}, "`niter` must be >= 0, got -1"),
    ({"energy": 0.5, "seed": -1}, "`seed` must be between 0 and"),
    ({"energy": 0.5, "seed": 2**63}, "`seed` must be between 0 and"),
)


@pytest.mark.parametrize(("options", "text"), REFUSED, ids=lambda x: str(x) if isinstance(x, dict) else "")
@pytest.mark.parametrize("make", [np.ones, torch.ones], ids=["numpy", "torch"])
def test_refusals(make, options: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=f"qb: {text}"):
        lowrank_core.qb(make((7, 5), dtype=np.float64 if make is np.ones else torch.float64), **options)


def test_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"qb: `a` must be one matrix, got shape \[2, 3, 4\]; loop over the batch"):
        lowrank_core.qb(np.ones((2, 3, 4)), energy=0.5)
    with pytest.raises(TypeError, match=r"qb: `block` must be an integer, got 1\.5"):
        lowrank_core.qb(np.ones((3, 4)), energy=0.5, block=1.5)
