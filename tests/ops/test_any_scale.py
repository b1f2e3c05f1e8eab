"""docs/numerics.md: any finite scale works. From the smallest subnormal numbers to nearly the largest there are, for
every function of the family, with rows and columns of the same matrix far apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import lowrank_core
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lowrank_core import _core
from testing import cases, checks, machine, tolerance
from torch import Tensor

M, N, RANK = 40, 28, 5
RANGE = {  # exponents of elements: subnormal at one end, 2^7 below the largest at the other, so that results fit
    torch.float32: (-147, 120),
    torch.bfloat16: (-131, 120),
    torch.float16: (-22, 9),
    torch.float64: (-1072, 1016),
}
dtypes = st.sampled_from(list(RANGE))


def times(a: Tensor, exponents: Tensor | int) -> Tensor:
    """a * 2^exponents with one rounding at most, whatever the exponents."""
    exact = np.ldexp(a.double().numpy(), torch.as_tensor(exponents).numpy())
    return torch.from_numpy(np.asarray(exact))


class Scaled(NamedTuple):
    """A matrix, its exponent, and the same numbers divided by 2^exponent, in float64."""

    a: Tensor
    exponent: int

    @property
    def usual(self) -> Tensor:
        return times(self.a, -self.exponent)

    @property
    def grain(self) -> float:
        """Half the distance of subnormal numbers, which results are rounded to, in usual units."""
        limits = torch.finfo(tolerance.factor_dtype(self.a.dtype))
        return 0.5 * math.ldexp(limits.smallest_normal * limits.eps, -self.exponent)


@st.composite
def scaled(draw: st.DrawFn, m: int = M, n: int = N, beside: Scaled | None = None) -> Scaled:
    """`beside`: of its dtype, and about as large as it is small."""
    dtype = draw(dtypes) if beside is None else beside.a.dtype
    low, high = RANGE[dtype]
    exponent = draw(st.integers(low, high) | st.sampled_from([low, high]))
    if beside is not None:
        exponent = min(max(draw(st.integers(-9, 9)) - beside.exponent, low), high)
    a = cases.gaussian(m, n, seed=draw(st.integers(0, 9)))
    for size, axis in ((m, 0), (n, 1)):
        spread = draw(st.sampled_from([0, 0, 8, (high - low) // 3, high - low]))
        below = torch.from_numpy(cases.generator(draw(st.integers(0, 9))).integers(-spread, 1, size))
        below[draw(st.integers(0, size - 1))] = 0
        a = times(a, below.unsqueeze(1 - axis))
    a = times(a, exponent).to(dtype)
    largest = float(a.abs().max())
    return Scaled(a, math.frexp(largest)[1] if largest > 0.0 else 0)


def assert_triplet(given_: Scaled, u: Tensor, s: Tensor, vh: Tensor) -> None:
    usual, values = given_.usual, times(s, -given_.exponent)
    space = min(2 * (RANK + 10), *usual.shape)
    for q in (u, vh.mT):
        checks.assert_orthonormal(q, space)
    checks.assert_signs(u)
    rounding = given_.grain * math.sqrt(s.numel())
    like = usual.to(tolerance.factor_dtype(given_.a.dtype))
    assert checks.image_defect(usual, u, values, vh) <= tolerance.coefficients(like, space) + rounding
    assert bool((s >= 0).all()) and bool((s.diff() <= 0).all()) and bool(s.isfinite().all())


SEARCHES: dict[str, Callable[..., Any]] = {
    "rsvd": lambda a: lowrank_core.rsvd(a, RANK, precision="highest"),
    "without oversampling": lambda a: lowrank_core.rsvd(a, RANK, oversample=0, niter=0, precision="highest"),
    "full": lambda a: lowrank_core.rsvd(a, min(a.shape), precision="highest"),
    "svd_lowrank": lambda a: (lambda u, s, v: (u, s, v.mT))(*lowrank_core.svd_lowrank(a, RANK)),
}


@given(scaled(), st.sampled_from(sorted(SEARCHES)), st.booleans())
def test_the_search(given_: Scaled, call: str, transposed: bool) -> None:
    given_ = Scaled(given_.a.mT, given_.exponent) if transposed else given_
    assert_triplet(given_, *SEARCHES[call](given_.a))


@given(scaled(), scaled(M, 7), st.integers(1, 2))
def test_a_basis_of_another_size(given_: Scaled, basis: Scaled, niter: int) -> None:
    """Columns of a basis are directions: how long they are does not matter, and what they hold is found."""
    start = basis.a if basis.a.dtype != torch.float64 else basis.a.double()
    out = lowrank_core.rsvd(given_.a, RANK, basis=start, niter=niter, precision="highest")
    assert_triplet(given_, *out)
    q = lowrank_core.range_finder(given_.a, RANK, basis=start, niter=niter, precision="highest")
    assert checks.same_bits(q, out.u)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_size_of_a_basis_changes_no_bit(dtype: torch.dtype) -> None:
    a, basis = cases.gaussian(M, N).to(dtype), cases.gaussian(M, 4, seed=1).to(dtype)
    low, high = RANGE[dtype]
    plain = lowrank_core.range_finder(a, RANK, basis=basis, niter=1)
    for exponents in ((low // 2,), (high,), (low // 2, high, 0, low // 2)):
        sizes = torch.tensor(exponents).repeat(4)[:4]
        other = lowrank_core.range_finder(a, RANK, basis=times(basis, sizes).to(dtype), niter=1)
        assert checks.same_bits(plain, other)
    wide = times(basis.double(), 1000)  # beyond the range of float32, in which a float32 matrix is searched
    assert checks.same_bits(plain, lowrank_core.range_finder(a, RANK, basis=wide, niter=1))


@given(scaled(), st.sampled_from([0.5, 0.9, 0.99]))
def test_qb(given_: Scaled, energy: float) -> None:
    usual, (q, b, captured) = given_.usual, lowrank_core.qb(given_.a, energy=energy)
    if not given_.a.any():
        assert q.shape[1] == 0 and captured == 1.0
        return
    work = tolerance.factor_dtype(given_.a.dtype)
    rounding = 2 * tolerance.coefficients(usual.to(work), N)
    checks.assert_orthonormal(q, N)
    rows = times(b, -given_.exponent)
    assert tolerance.norm(q.double().mT @ usual - rows) <= rounding + given_.grain * math.sqrt(b.numel())
    size = tolerance.norm(usual)
    assert abs(captured - (tolerance.norm(q.double().mT @ usual) / size) ** 2) <= rounding / size
    without = float(torch.linalg.vector_norm(rows[:-1]) / size) ** 2
    assert captured >= energy - rounding / size and without <= energy + rounding / size  # no direction too many


@given(st.data(), st.sampled_from([(M, 6, N), (7, 6, 5), (5, N, 4)]))
def test_products(data: st.DataObject, shape: tuple[int, int, int]) -> None:
    """Of factors whose sizes make up for one another; the last is smaller than its factors."""
    m, k, n = shape
    left = data.draw(scaled(m, k))
    right = data.draw(scaled(k, n, beside=left))
    product, exponent = left.usual @ right.usual, left.exponent + right.exponent
    u, s, vh = lowrank_core.factored_svd(left.a, right.a)
    for q in (u, vh.mT):
        checks.assert_orthonormal(q, N)
    grain = left.grain * math.ldexp(1.0, -right.exponent) * math.sqrt(s.numel())
    pairs = torch.linalg.vector_norm(left.usual, dim=0) @ torch.linalg.vector_norm(right.usual, dim=1)
    unit = 4 * tolerance.coefficients(torch.ones(1, 1, dtype=s.dtype), N) * math.sqrt(M * N)
    assert checks.image_defect(product, u, times(s, -exponent), vh) <= unit * float(pairs) + grain
    assert bool(s.isfinite().all()) and bool((s.diff() <= 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_small_column_beside_a_large_row_keeps_its_digits(dtype: torch.dtype) -> None:
    """Their product is as large as the others'; subnormal numbers have fewer digits, and all of them count."""
    low, high = RANGE[dtype]
    for sizes in ((0, high, low + 10, 3, low // 2, 0), (low + 10, 0, 0, 0, 0, 0), (low // 2,) * 6, (high,) * 6):
        of_b = torch.tensor(sizes)
        of_a = (-of_b).clamp(low + 10, high).unsqueeze(1)
        b = times(cases.gaussian(M, 6), of_b).to(dtype)
        a = times(cases.gaussian(6, N, seed=1), of_a).to(dtype)
        product = times(b, -of_b) * 2.0 ** (of_b + of_a[:, 0]) @ times(a, -of_a)
        out = lowrank_core.factored_svd(b, a)
        for q in (out.u, out.vh.mT):
            checks.assert_orthonormal(q, N)
        assert checks.image_defect(product, *out) <= 4 * tolerance.coefficients(product.to(dtype), N)


@given(scaled(), st.sampled_from(["auto", "cholqr2", "householder"]))
def test_orthonormalize(given_: Scaled, method: str) -> None:
    """Each column counts by its direction alone."""
    y = given_.a[:, :6]
    sizes = y.double().abs().amax(dim=0)
    if method == "cholqr2" and not bool((sizes > 0).all()):
        with pytest.raises(RuntimeError, match="orthonormalize: `y` must have linearly independent columns"):
            lowrank_core.orthonormalize(y, method=method)
        return
    exponents = torch.tensor([-math.frexp(float(x))[1] if x > 0 else 0 for x in sizes])
    unit = times(y, exponents)
    unit = unit / torch.linalg.vector_norm(unit, dim=0).clamp(min=1.0 / M)
    if method == "cholqr2" and _nearly_dependent(unit):
        return
    q = lowrank_core.orthonormalize(y, method=method)
    checks.assert_orthonormal(q)
    rounding = 8 * math.sqrt(M) * tolerance.UNIT[tolerance.factor_dtype(y.dtype)]
    assert bool((torch.linalg.vector_norm(unit - q.double() @ (q.double().mT @ unit), dim=0) <= rounding).all())


def _nearly_dependent(unit: Tensor) -> bool:
    return float(torch.linalg.svdvals(unit)[-1]) < math.sqrt(tolerance.UNIT[torch.float32])


@pytest.mark.parametrize("dtype", list(RANGE), ids=str)
def test_newton_schulz(dtype: torch.dtype) -> None:
    for exponent in RANGE[dtype]:
        y = times(cases.gaussian(M, 6), exponent).to(dtype)
        plain = times(y, -exponent).to(tolerance.factor_dtype(dtype))
        out = [lowrank_core.orthonormalize(x, method="newton_schulz") for x in (y, plain)]
        assert checks.same_bits(out[0], out[1])
        checks.assert_orthonormal(out[0])


class Step(NamedTuple):
    """What augment_truncate gets for one layer, and the matrix before truncation in usual units; `apart`: how far the
    two products with the gradient, each rounded on its own, disagree about the part that both have."""

    arrays: list[list[Tensor]]
    lr: float
    target: Tensor
    apart: float
    exponent: int


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """s, the gradient and the rate have sizes of their own; where s is far below the rest, it is zero."""
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    low, high = RANGE[dtype]
    rank, seed = 3, draw(st.integers(0, 9))
    u, v = (cases.orthonormal(size, rank, seed + i).to(dtype).double() for i, size in enumerate((M, N)))
    s, g = cases.gaussian(rank, rank, seed=seed + 2), cases.gaussian(M, N, seed=seed + 3)
    exponent = draw(st.integers(low + 30, high - 10) | st.sampled_from([low + 30, high - 10]))
    rate = draw(st.integers(max(-1070, low - exponent), 1000))
    rate = max(min(rate, exponent - low - 30), exponent - high + 10)
    s = s * draw(st.sampled_from([0.0, 1.0]))
    of_g = exponent - rate  # so that a step is as large as s
    arrays = [u, times(s, exponent), v, times(g @ v, of_g), times(g.mT @ u, of_g)]
    stored = [x.to(dtype) for x in arrays]
    s, gv, gu = times(stored[1], -exponent), times(stored[3], -of_g), times(stored[4], -of_g)
    inner = u.mT @ gv
    target = u @ s @ v.mT - (gv @ v.mT + u @ gu.mT - u @ inner @ v.mT)
    return Step([[x] for x in stored], 2.0**rate, target, tolerance.norm(inner - gu.mT @ v), exponent)


@given(steps(), st.booleans())
def test_augment_truncate(given_: Step, cut: bool) -> None:
    dtype = given_.arrays[0][0].dtype
    tol = 0.3 if cut else 0.0
    out = lowrank_core.augment_truncate(*given_.arrays, lr=given_.lr, tol=tol, max_rank=6)[0]
    for q in (out.u, out.v):
        checks.assert_orthonormal(q, N)
    size = tolerance.norm(given_.target)
    found = out.u.double() @ times(out.s, -given_.exponent) @ out.v.double().mT
    limits = torch.finfo(dtype)
    grain = math.ldexp(limits.smallest_normal * limits.eps, -given_.exponent)
    rounding = 16 * tolerance.coefficients(torch.ones(1, 1, dtype=dtype), N) * math.sqrt(M * N) * size + grain
    rounding += given_.apart
    assert abs(tolerance.norm(found - given_.target) - out.lost * size) <= rounding
    values = torch.linalg.svdvals(given_.target)
    tails = values.square().flip(0).cumsum(0).flip(0).sqrt() / values.square().sum().sqrt()
    if cut and float((tails - tol).abs().min()) > rounding / size:
        assert out.u.shape[1] == int((tails > tol).sum())


def test_the_budget_weighs_what_no_float64_holds() -> None:
    """The weight times the value: layers of 2^900 and 2^-900 with weights that turn their order around."""
    layers = []
    for exponent in (900, -900):
        u, v = cases.orthonormal(9, 2), cases.orthonormal(8, 2, seed=1)
        zero = torch.zeros(9, 2).double(), torch.zeros(8, 2).double()
        layers.append([u, times(torch.diag(torch.tensor([2.0, 1.0])), exponent), v, *zero])
    columns = [list(column) for column in zip(*layers, strict=True)]
    options = {"lr": 1.0, "tol": 1e-3, "max_rank": 4, "budget": 3}
    for weights, ranks in (([1.0, 1.0], [2, 1]), ([1e-300, 1e300], [1, 2]), ([1e300, 1e-300], [2, 1])):
        out = lowrank_core.augment_truncate(*columns, weights=weights, **options)
        assert [x.u.shape[1] for x in out] == ranks


@pytest.mark.parametrize("level", _core.isa_levels())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_powers_of_two_change_no_bit_at_any_level(level: str, dtype: torch.dtype) -> None:
    a, high = cases.gaussian(M, N).to(dtype), RANGE[dtype][1]
    calls: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
        "rsvd": lambda x: tuple(lowrank_core.rsvd(x, RANK)),
        "qb": lambda x: lowrank_core.qb(x, energy=0.9)[:2],
        "factored_svd": lambda x: tuple(lowrank_core.factored_svd(x, torch.eye(N, 9, dtype=dtype))),
        "orthonormalize": lambda x: (lowrank_core.orthonormalize(x),),
    }
    with machine.isa(level):
        for name, call in calls.items():
            plain = call(a)
            for exponent in (-high + 10, high - 10):
                other = call(times(a, exponent).to(dtype))
                for x, y in zip(plain, other, strict=True):
                    scales = name != "orthonormalize" and x.abs().max() > 1.0 + tolerance.UNIT[torch.bfloat16]
                    assert torch.equal(times(x, exponent) if scales else x.double(), y.double())
