"""Matrices that break solvers: zero, of low rank, of one column, badly scaled, not finite."""

from __future__ import annotations

import math
from collections.abc import Callable

import lowrank_core
import numpy as np
import pytest
import rsvd_family as family
import torch
from lowrank_core.reference import rsvd as reference
from testing import cases, checks, tolerance
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PRECISIONS = ("highest", "medium")


def _outer(m: int, n: int) -> Tensor:
    return cases.gaussian(m, 1) @ cases.gaussian(1, n)


def _duplicates(m: int, n: int) -> Tensor:
    return cases.gaussian(m, 3).repeat(1, n)[:, :n]


DEFECTIVE = {
    "zero": torch.zeros(40, 30),
    "rank one": _outer(40, 30),
    "rank five": cases.gaussian(40, 5) @ cases.gaussian(5, 30),
    "one nonzero": torch.zeros(40, 30).index_put((torch.tensor(17), torch.tensor(23)), torch.tensor(3.0)),
    "one nonzero row": torch.zeros(40, 30).index_copy(0, torch.tensor([11]), torch.ones(1, 30)),
    "identity": torch.eye(40, 30),
    "column": cases.gaussian(40, 1),
    "row": cases.gaussian(1, 40),
    "zero column": torch.zeros(40, 1),
    "graded columns": cases.gaussian(40, 30) * torch.logspace(0, -12, 30),
}
# Columns that repeat exactly: what orthogonalization leaves of them shrinks by one unit with each, down to underflow.
REPEATED = {
    "duplicate columns": _duplicates(40, 30),
    "noise behind duplicates": _duplicates(40, 30) + 1e-7 * cases.gaussian(40, 30),
    "many duplicates": _duplicates(200, 150),
    "duplicate rows": _duplicates(40, 30).mT.contiguous(),
    "constant": torch.ones(40, 30),
}


def check_sound(a: Tensor, niter: int, precision: str) -> None:
    for rank, oversample in ((1, 0), (min(8, *a.shape), 10), (min(a.shape), 0)):
        width = min(rank + oversample, *a.shape)
        triplet = lowrank_core.rsvd(a, rank, oversample=oversample, niter=niter, precision=precision)
        checks.assert_triplet(a, *triplet, rank=rank, width=width)
        q = lowrank_core.range_finder(a, rank, oversample=oversample, niter=niter, precision=precision)
        checks.assert_orthonormal(q, width)
        checks.assert_signs(q)


def check_recovered(a: Tensor) -> None:
    rank = min(8, *a.shape)
    lost = tolerance.norm(torch.linalg.svdvals(a.double())[rank:])  # what rounding to the dtype put behind it
    magnified = lost * math.sqrt(1 + rank / 9)  # by a sketch of rank + 10 columns without power iterations: bound B1
    for niter in (0, 2):
        triplet = lowrank_core.rsvd(a, rank, niter=niter, precision="highest")
        assert checks.residual(a, *triplet) <= magnified + tolerance.singular_values(a, rank + 10, niter)


@pytest.mark.parametrize("name", list(DEFECTIVE))
def test_factors_are_sound(name: str) -> None:
    for dtype in DTYPES:
        for niter in (0, 1, 2):
            for precision in PRECISIONS:
                check_sound(DEFECTIVE[name].to(dtype), niter, precision)


@pytest.mark.parametrize("name", list(DEFECTIVE))
def test_low_rank_is_recovered(name: str) -> None:
    if name in ("identity", "graded columns"):
        return
    for dtype in DTYPES:
        check_recovered(DEFECTIVE[name].to(dtype))


def _row_sparse(seed: int) -> Tensor:
    """A fifth of the rows: the gradient of an embedding."""
    draw = cases.generator(seed)
    m, n = (int(x) for x in draw.integers(20, 80, 2))
    return torch.from_numpy(draw.standard_normal((m, n)) * (draw.random(m) < 0.2)[:, None])


def _graded(seed: int) -> Tensor:
    """Rows and columns over 8 decades each."""
    draw = cases.generator(seed)
    m, n = (int(x) for x in draw.integers(10, 60, 2))
    sizes = [torch.from_numpy(10.0 ** draw.uniform(-4, 4, k)) for k in (m, n)]
    return sizes[0][:, None] * torch.from_numpy(draw.standard_normal((m, n))) * sizes[1]


def _sparse(seed: int) -> Tensor:
    """One entry in ten."""
    draw = cases.generator(seed)
    m, n = (int(x) for x in draw.integers(2, 80, 2))
    return torch.from_numpy(draw.standard_normal((m, n)) * (draw.random((m, n)) < 0.1))


def _picked(seed: int) -> Tensor:
    """Columns out of a set of three."""
    draw = cases.generator(seed)
    m, n = (int(x) for x in draw.integers(2, 80, 2))
    return torch.from_numpy(draw.standard_normal((m, 3))[:, draw.integers(0, 3, n)])


def _zero_one(seed: int) -> Tensor:
    draw = cases.generator(seed)
    m, n = (int(x) for x in draw.integers(2, 80, 2))
    return torch.from_numpy(draw.integers(0, 2, (m, n)).astype(float))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "make",
    [_zero_one, _row_sparse, _sparse, _picked],
    ids=lambda f: f.__name__[1:],
)
def test_structured_matrices(make: Callable[[int], Tensor], dtype: torch.dtype) -> None:
    """What gradients of embeddings, dead units and counts look like."""
    for seed in range(100):
        check_sound(make(seed).to(dtype), seed % 3, "highest")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_graded_rows_and_columns(dtype: torch.dtype) -> None:
    for seed in range(100):
        check_sound(_graded(seed).to(dtype), 0, "highest")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_strongly_graded_rows_and_columns(dtype: torch.dtype) -> None:
    """Over 16 decades each: the squares of squares that an eigenvalue solver meets leave the range of float64."""
    for seed in range(300):
        a = _graded(seed)
        check_sound((a * a.abs()).to(dtype), 0, "highest")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_repeated_columns(dtype: torch.dtype) -> None:
    for a in REPEATED.values():
        for niter in (0, 1, 2):
            for precision in PRECISIONS:
                check_sound(a.to(dtype), niter, precision)
        check_recovered(a.to(dtype))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("at", [(0, 0), (60, 82), (30, 0)], ids=str)
@pytest.mark.parametrize(
    "call", ["rsvd", "rsvd_medium", "rsvd_warm", "svd_lowrank", "range_finder", "range_finder_warm"]
)
def test_not_finite_is_refused(call: str, at: tuple[int, int], dtype: torch.dtype, bad: float) -> None:
    a = family.matrix(dtype=dtype)
    a[at] = bad
    with pytest.raises(ValueError, match=r"`a` must be finite, got NaN or infinity"):
        family.CALLS[call](a)


@pytest.mark.parametrize("niter", [0, 1])
@pytest.mark.parametrize("member", [0, 5])
def test_one_bad_member_refuses_the_batch(member: int, niter: int) -> None:
    a = family.matrix(20, 30, 6)
    a[member, 3, 4] = math.nan
    with pytest.raises(ValueError, match="must be finite"):
        lowrank_core.rsvd(a, 4, niter=niter)


@pytest.mark.parametrize("op", ["range_finder", "svd_lowrank", "factored_svd", "basis"])
def test_the_refusal_names_the_operator_and_the_argument(op: str) -> None:
    a = family.matrix(20, 30)
    bad = a.clone()
    bad[0, 0] = math.nan
    calls = {
        "range_finder": (lambda: lowrank_core.range_finder(bad, 4), "range_finder: `a`"),
        "svd_lowrank": (lambda: lowrank_core.svd_lowrank(bad, 4), "svd_lowrank: `a`"),
        "factored_svd": (lambda: lowrank_core.factored_svd(a.mT, bad), "factored_svd: "),
        "basis": (lambda: lowrank_core.rsvd(a, 4, basis=bad[:, :3]), "rsvd: `basis`"),
    }
    call, text = calls[op]
    with pytest.raises(ValueError, match=text):
        call()


def _scaled(exponent: int, dtype: type) -> np.ndarray:
    return np.ldexp(cases.gaussian(60, 40).numpy(), exponent).astype(dtype)


@pytest.mark.parametrize(("dtype", "exponents"), [(np.float32, (-110, 110)), (np.float64, (-480, 480))], ids=str)
def test_any_usual_scale(dtype: type, exponents: tuple[int, ...]) -> None:
    plain = lowrank_core.rsvd(_scaled(0, dtype), 5)
    for exponent in exponents:
        scaled = lowrank_core.rsvd(_scaled(exponent, dtype), 5)
        assert checks.same_bits((scaled.u, scaled.vh), (plain.u, plain.vh))
        assert np.array_equal(scaled.s, np.ldexp(plain.s, exponent))


@pytest.mark.parametrize(
    ("dtype", "exponent"),
    [(np.float64, e) for e in (-1000, -560, -520, 520, 1000)] + [(np.float32, e) for e in (-126, 120)],
    ids=str,
)
def test_any_finite_scale(dtype: type, exponent: int) -> None:
    """Finite input is never refused, and its direction never lost."""
    a = _scaled(exponent, dtype)
    assert np.isfinite(a).all()
    scaled = lowrank_core.rsvd(a, 5)
    usual = torch.from_numpy(np.ldexp(a, -exponent))  # with the rounding that subnormal numbers have had
    u, s, vh = (torch.from_numpy(x) for x in scaled)
    checks.assert_triplet(usual, u, torch.from_numpy(np.ldexp(s.numpy(), -exponent)), vh, rank=5, width=15)


def test_subnormal_elements() -> None:
    """Values that are multiples of 2^-149 are read as such; s is rounded to one."""
    a = torch.from_numpy(_scaled(-140, np.float32))
    u, s, vh = lowrank_core.rsvd(a, 5)
    checks.assert_orthonormal(u)
    checks.assert_orthonormal(vh.mT)
    exact = reference.rsvd(torch.ldexp(a.double(), torch.tensor(140)), 5)[1]
    rounding = 5**0.5 * 2.0 ** (140 - 150)
    usual = torch.ldexp(a.double(), torch.tensor(140)).float()  # old torches lose 2^140 in float32
    ours = torch.ldexp(s.double(), torch.tensor(140))
    assert tolerance.norm(ours - exact) <= rounding + tolerance.singular_values(usual, 15, 2)
