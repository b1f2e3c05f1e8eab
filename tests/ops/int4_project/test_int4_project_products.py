"""int4_project and int4_project_back: bounds, shapes, layouts, dtypes, levels, threads, derivatives, identities."""

from __future__ import annotations

from collections.abc import Callable

import int4_cases
import lowrank_core
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lowrank_core import _core
from lowrank_core.reference import int4_project as reference
from testing import cases, checks, layouts, machine, tolerance
from torch import Tensor

Way = Callable[[lowrank_core.Int4Matrix, Tensor], Tensor]
WAYS: dict[str, Way] = {"project": lowrank_core.int4_project, "back": lowrank_core.int4_project_back}
SHAPES = [(1, 1, 1), (cases.PRIME, 3, 5), (3, 4, 0), (0, 4, 2), (4, 0, 2), (4, 3, 3)]
SHAPES += [(cases.TILE_ROWS + d, cases.VECTOR + d, cases.TILE_COLS - d) for d in (-1, 0, 1)]
SHAPES += [(cases.DEPTH + d, cases.VECTOR // 2 + d, 2 * cases.DEPTH - d) for d in (-1, 0, 1)]
SHAPES += [(700, 131, 45), (2000, 20, 9), (45, 300, 70)]  # slices of k; both sides longer than a group


def factors(q: lowrank_core.Int4Matrix, x: Tensor, way: str) -> tuple[Tensor, Tensor]:
    """The product in float64: with the basis as it is read, in float32."""
    basis = int4_cases.decoded(q).float().double()
    return (basis if way == "back" else basis.mT), x.double()


def operand(q: lowrank_core.Int4Matrix, n: int, way: str, *batch: int) -> Tensor:
    return cases.gaussian(q.shape[1 if way == "back" else 0], n, *batch, seed=8)


def assert_product(q: lowrank_core.Int4Matrix, x: Tensor, way: str) -> None:
    out = WAYS[way](q, x)
    left, right = factors(q, x, way)
    assert out.dtype == x.dtype and out.shape == (*x.shape[:-2], left.shape[-2], x.shape[-1])
    assert bool(((out.double() - left @ right).abs() <= tolerance.product(left, right, x.dtype)).all())


@pytest.mark.parametrize("level", _core.isa_levels())
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("scheme", int4_cases.SCHEMES)
def test_every_shape_at_every_level(scheme: str, dim: int, way: str, level: str) -> None:
    with machine.isa(level):
        for m, r, n in SHAPES:
            for group_size in (32, 96, 128):
                q = int4_cases.basis(m, r, scheme, dim=dim, group_size=group_size)
                assert_product(q, operand(q, n, way).float(), way)


@pytest.mark.parametrize("dtype", int4_cases.FLOATS, ids=str)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dim", [0, 1])
def test_every_dtype(dim: int, way: str, dtype: torch.dtype) -> None:
    for scheme in ("affine", "nf4"):
        for m, r, n in SHAPES:
            q = int4_cases.basis(m, r, scheme, dim=dim, group_size=32)
            assert_product(q, operand(q, n, way).to(dtype), way)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dim", [0, 1])
def test_any_strides_and_batches_and_nan_around(dim: int, way: str, layout: str) -> None:
    q = int4_cases.basis(145, 37, dim=dim)
    x = layouts.LAYOUTS[layout](operand(q, 50, way, 2, 3).float())
    assert_product(q, x, way)
    for i in range(2):
        assert checks.same_bits(WAYS[way](q, x)[i, 1], WAYS[way](q, x[i, 1]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dim", [0, 1])
def test_threads_precision_and_libraries_give_the_same_bits(dim: int, way: str) -> None:
    q = int4_cases.basis(500, 70, dim=dim)
    x = operand(q, 300, way).float()
    plain = WAYS[way](q, x)
    for level in _core.isa_levels():
        with machine.isa(level):
            alone = WAYS[way](q, x)
            for count in (1, 2, 3):
                with machine.threads(count):
                    assert checks.same_bits(WAYS[way](q, x), alone)
    with machine.matmul_precision("medium"):
        assert checks.same_bits(WAYS[way](q, x), plain)
    numpy = int4_cases.quantize(cases.gaussian(500, 70, seed=5).float().numpy(), dim=dim)
    out = WAYS[way](numpy, x.numpy())
    assert isinstance(out, np.ndarray) and checks.same_bits(out, plain)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("scheme", int4_cases.SCHEMES)
def test_agrees_with_the_reference(scheme: str, dim: int, way: str) -> None:
    q = int4_cases.basis(70, 9, scheme, dim=dim, group_size=32)
    x = operand(q, 11, way)
    parts = (*q[:3], q.shape, q.dim, q.group_size, q.scheme)
    exact = (reference.int4_project_back if way == "back" else reference.int4_project)(*parts, x)
    # The basis is read in float32: one rounding of each of its elements.
    size = tolerance.norm(int4_cases.decoded(q)) * tolerance.norm(x)
    assert (
        tolerance.norm(WAYS[way](q, x) - exact)
        <= (tolerance.UNIT[torch.float32] + tolerance.gamma(70, torch.float64)) * size
    )


@given(st.integers(1, 150), st.integers(1, 40), st.integers(1, 8), st.sampled_from([0, 1]), st.integers(0, 99))
def test_the_ways_are_adjoint(m: int, r: int, n: int, dim: int, seed: int) -> None:
    """<project(g), x> = <g, project_back(x)>."""
    q = int4_cases.basis(m, r, dim=dim)
    g, x = cases.gaussian(m, n, seed=seed), cases.gaussian(r, n, seed=seed + 1)
    left = (lowrank_core.int4_project(q, g) * x).sum()
    right = (g * lowrank_core.int4_project_back(q, x)).sum()
    size = tolerance.norm(int4_cases.decoded(q)) * tolerance.norm(g) * tolerance.norm(x)
    assert abs(float(left - right)) <= 4 * tolerance.gamma(m + n + r, torch.float64) * size


def test_a_square_basis_keeps_its_sides() -> None:
    """A side that is guessed from shapes goes wrong where r = m."""
    q = int4_cases.basis(64, 64)
    p, x = lowrank_core.dequantize_int4(q, "float64"), cases.gaussian(64, 64)
    bound = tolerance.product(p.mT, x, torch.float64), tolerance.product(p, x, torch.float64)
    assert bool(((lowrank_core.int4_project(q, x) - p.mT @ x).abs() <= bound[0]).all())
    assert bool(((lowrank_core.int4_project_back(q, x) - p @ x).abs() <= bound[1]).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    q = int4_cases.basis(130, 20)
    g = cases.gaussian(130, 20)
    g[3, 7] = bad
    low = lowrank_core.int4_project(q, g)
    assert not low[:, 7].isfinite().any() and bool(low[:, :7].isfinite().all()) and bool(low[:, 8:].isfinite().all())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dim", [0, 1])
def test_derivatives(dim: int, way: str) -> None:
    q = int4_cases.basis(37, 5, dim=dim, group_size=32)
    x = operand(q, 4, way, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: WAYS[way](q, y), (x,))
    assert torch.autograd.gradgradcheck(lambda y: WAYS[way](q, y).square(), (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gradient_is_the_way_back(dtype: torch.dtype) -> None:
    q = int4_cases.basis(130, 20)
    g = cases.gaussian(130, 9).to(dtype).requires_grad_()
    weight = cases.gaussian(20, 9, seed=3).to(dtype)
    lowrank_core.int4_project(q, g).backward(weight)
    assert g.grad is not None and checks.same_bits(g.grad, lowrank_core.int4_project_back(q, weight))
