"""dct and idct: against the matrix, scipy, and the identities of an orthogonal transform."""

from __future__ import annotations

import math

import dct_family as family
import lowrank_core
import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given
from hypothesis import strategies as st
from lowrank_core import _core
from lowrank_core.reference import dct_select as reference
from testing import cases, checks, layouts, machine, tolerance
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 55, 59, 61, 63, 64, 67, 100, 127, 128, 134, 191, 193)
LONG = (255, 256, 257, 768, 1000, 1021, 1023, 1024, 1042, 2048, 4096)
LEVELS = _core.isa_levels()
TRANSFORMS = {"dct": (lowrank_core.dct, reference.dct), "idct": (lowrank_core.idct, reference.idct)}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", family.DTYPES, ids=str)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_length(name: str, dtype: torch.dtype, level: str) -> None:
    ours, exact = TRANSFORMS[name]
    with machine.isa(level):
        for n in LENGTHS:
            for m in (1, cases.VECTOR + 1):
                x = cases.gaussian(m, n).to(dtype)
                family.assert_lines(ours(x), exact(x), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", LONG)
def test_long_ones_against_scipy(n: int, dtype: torch.dtype) -> None:
    x = cases.gaussian(3, n).to(dtype)
    exact = torch.from_numpy(scipy.fft.dct(x.double().numpy(), norm="ortho"))
    family.assert_lines(lowrank_core.dct(x), exact, x)
    family.assert_lines(lowrank_core.idct(exact.to(dtype)), x.double(), exact)


@pytest.mark.parametrize("basis", ["dct2", "dct3"])
@pytest.mark.parametrize("n", (*LENGTHS, 509, 1000))
def test_transform_and_product_agree(n: int, basis: str) -> None:
    """Both ways to the same basis; either would be right by itself if its matrix were another one."""
    for x in (cases.gaussian(20, n), cases.gaussian(20, n).float()):
        out = {method: torch.empty_like(x) for method in ("fft", "gemm")}
        for method, result in out.items():
            _core.dct_transform(result, x, basis=basis, method=method)
        bound = tolerance.transform(n, x.dtype) + tolerance.gamma(n + 2, x.dtype)
        assert bool(((out["fft"] - out["gemm"]).norm(dim=-1) <= bound * x.norm(dim=-1)).all())


@pytest.mark.parametrize("dim", [-3, -2, -1, 0, 1, 2])
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_any_dimension_and_strides(name: str, layout: str, dim: int) -> None:
    ours, exact = TRANSFORMS[name]
    x = cases.gaussian(35, 20, 17).float()
    out = ours(layouts.LAYOUTS[layout](x), dim=dim)
    assert out.is_contiguous() and out.dtype == x.dtype
    family.assert_lines(out, exact(x, dim=dim), x, dim=dim)


def test_outputs_of_any_strides_keep_to_their_place() -> None:
    x = cases.gaussian(37, 41).float()
    for layout in layouts.LAYOUTS.values():
        out = layout(torch.zeros_like(x))
        _core.dct_transform(out, x)
        family.assert_lines(out, reference.dct(x), x)
    inside = layouts.embedded(torch.zeros_like(x))
    _core.dct_transform(inside, x)
    assert layouts.outside_is_nan(inside)
    assert checks.same_bits(lowrank_core.dct(layouts.reversed_view(x.numpy())), lowrank_core.dct(x.numpy()))


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (0, 5), (5, 0), (2, 0, 3), (1, 1, 1), (2, 3, 1, 6)])
def test_shapes(shape: tuple[int, ...]) -> None:
    x = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)
    for dim in range(len(shape)):
        family.assert_lines(lowrank_core.dct(x, dim=dim), reference.dct(x, dim=dim), x, dim=dim)


@st.composite
def lines(draw: st.DrawFn) -> Tensor:
    n, m = draw(st.integers(1, 300)), draw(st.integers(1, 40))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    x = cases.gaussian(m, n, seed=draw(st.integers(0, 99)))
    return (x * 2.0 ** draw(st.integers(-20, 20))).to(dtype)


@given(lines())
def test_inverse_and_parseval(x: Tensor) -> None:
    y = lowrank_core.dct(x)
    bound = tolerance.transform(x.shape[-1], x.dtype) * x.double().norm(dim=-1)
    assert bool(((lowrank_core.idct(y) - x).double().norm(dim=-1) <= 3 * bound).all())
    assert bool(((y.double().norm(dim=-1) - x.double().norm(dim=-1)).abs() <= bound).all())


@given(lines(), st.floats(-3, 3))
def test_linearity(x: Tensor, factor: float) -> None:
    y = x.flip(0)
    left = lowrank_core.dct(x + factor * y).double()
    right = lowrank_core.dct(x).double() + factor * lowrank_core.dct(y).double()
    size = x.double().norm() + abs(factor) * y.double().norm()
    assert tolerance.norm(left - right) <= 2 * tolerance.transform(x.shape[-1], x.dtype) * size


@given(lines())
def test_reversing_flips_the_odd_ones(x: Tensor) -> None:
    sign = 1.0 - 2.0 * (torch.arange(x.shape[-1]) % 2)
    difference = lowrank_core.dct(x.flip(-1)).double() - lowrank_core.dct(x).double() * sign
    bound = 2 * tolerance.transform(x.shape[-1], x.dtype) * x.double().norm(dim=-1)
    assert bool((difference.norm(dim=-1) <= bound).all())


@given(lines(), st.integers(-30, 30))
def test_powers_of_two_pass_through_exactly(x: Tensor, exponent: int) -> None:
    assert checks.same_bits(lowrank_core.dct(x * 2.0**exponent), lowrank_core.dct(x) * 2.0**exponent)


@pytest.mark.parametrize("n", (*LENGTHS, 1000, 1024))
def test_constants_impulses_and_cosines(n: int) -> None:
    """A constant has one coefficient, sqrt(n) times it; a cosine one; an impulse is a column of the matrix."""
    matrix = reference.dct_matrix(n)
    expected = torch.zeros(1, n, dtype=torch.float64)
    expected[0, 0] = 3 * math.sqrt(n)
    x = torch.full((1, n), 3.0, dtype=torch.float64)
    family.assert_lines(lowrank_core.dct(x), expected, x)
    family.assert_lines(lowrank_core.dct(matrix), torch.eye(n, dtype=torch.float64), matrix)
    family.assert_lines(lowrank_core.dct(torch.eye(n, dtype=torch.float64)), matrix.T, torch.eye(n))


def test_the_matrix_is_right_at_lengths_where_a_float32_phase_is_not() -> None:
    """k (2i + 1) reaches 3.4e7 at 4096; the impulse at the end of a row shows the whole last column."""
    x = torch.zeros(1, 4096)
    x[0, -1] = 1.0
    family.assert_lines(lowrank_core.dct(x), reference.dct(x), x)


@pytest.mark.parametrize("n", [16, 45, 67, 193, 1021])
def test_lines_do_not_see_each_other(n: int) -> None:
    """Rows of zeros stay zeros, NaN and infinity stay in their row, tiny rows keep their digits beside huge ones."""
    x = cases.gaussian(40, n).float()
    plain = lowrank_core.dct(x)
    x[3], x[5, 0], x[20], x[21] = 0.0, math.nan, x[20] * 2.0**-60, x[21] * 2.0**60
    x[22, 0] = math.inf
    out = lowrank_core.dct(x)
    assert bool((out[3] == 0).all()) and bool(out[5].isnan().all()) and not bool(out[22].isfinite().all())
    assert checks.same_bits(out[20], plain[20] * 2.0**-60) and checks.same_bits(out[21], plain[21] * 2.0**60)
    others = [i for i in range(40) if i not in (3, 5, 20, 21, 22)]
    assert checks.same_bits(out[others], plain[others])


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("shape", [(7,), (3, 8), (2, 5, 4)])
def test_derivatives(name: str, shape: tuple[int, ...]) -> None:
    function = TRANSFORMS[name][0]
    for dim in range(len(shape)):
        x = torch.from_numpy(cases.generator(*shape).standard_normal(shape)).requires_grad_()
        assert gradcheck(lambda x, d=dim: function(x, dim=d), (x,))
        assert gradgradcheck(lambda x, d=dim: function(x, dim=d), (x,))


def test_the_gradient_is_the_inverse() -> None:
    x = cases.gaussian(5, 12).float().requires_grad_()
    weight = cases.gaussian(5, 12, seed=1).float()
    (lowrank_core.dct(x, dim=0) * weight).sum().backward()
    assert checks.same_bits(x.grad, lowrank_core.idct(weight, dim=0))


def test_half_precision_is_computed_in_float32() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        x = cases.gaussian(20, 48).to(dtype)
        assert checks.same_bits(lowrank_core.dct(x), lowrank_core.dct(x.float()).to(dtype))


@pytest.mark.parametrize("n", [1, 2, 4, 8, 32, 512])
def test_hadamard_is_sylvesters(n: int) -> None:
    x = cases.gaussian(19, n).float()
    out = torch.empty_like(x)
    _core.dct_transform(out, x, basis="hadamard")
    family.assert_lines(out, x.double() @ reference.hadamard_matrix(n), x)
    assert np.array_equal(reference.hadamard_matrix(n).sign().numpy(), scipy.linalg.hadamard(n))
