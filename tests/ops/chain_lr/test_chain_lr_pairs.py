"""Gradients of factors divided by Gram matrices: against the float64 statement, in any layout, at every level."""

from __future__ import annotations

import pytest
import torch
from lowrank_core import _core
from lowrank_core.ops.chain_lr.pairs import scaled_gradients_list
from lowrank_core.reference import chain_lr as reference
from testing import cases, checks, layouts, machine, tolerance
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# (m, n, r): empty ones, one more and less than a vector, a tile and a run of columns, a prime, r beyond m.
SHAPES = [(0, 5, 2), (5, 4, 0), (1, 1, 1), (17, 15, 3), (64, 1025, 8), (1023, 33, 16), (37, 101, 31), (5, 2049, 7)]
DAMPING = 0.1

Case = tuple[Tensor, Tensor, Tensor, Tensor]  # grad_a, grad_b, a, b


def case(m: int, n: int, r: int, dtype: torch.dtype = torch.float32) -> Case:
    shapes = ((r, n), (m, r), (r, n), (m, r))
    drawn = (cases.gaussian(*shape, seed=seed) for seed, shape in enumerate(shapes))
    return tuple(x.to(dtype) for x in drawn)  # type: ignore[return-value]


def scaled(some: list[Case], dampings: list[float] | None = None) -> list[tuple[Tensor, Tensor]]:
    grad_a, grad_b, a, b = map(list, zip(*some, strict=True))
    new_a, new_b = [torch.full_like(x, torch.nan) for x in grad_a], [torch.full_like(x, torch.nan) for x in grad_b]
    scaled_gradients_list(new_a, new_b, grad_a, grad_b, a, b, dampings or [DAMPING] * len(some))
    return list(zip(new_a, new_b, strict=True))


def bound(exact: Tensor, gram: Tensor, grad: Tensor, length: int, dtype: torch.dtype, damping: float) -> Tensor:
    """For each column, as norms: the product with the inverse and its rounding, and the inverse in float64."""
    r = len(gram)
    values = torch.linalg.eigvalsh(gram + damping * torch.eye(r, dtype=torch.float64))
    inverse, condition = 1 / float(values[0]), float(values[-1] / values[0])
    work = tolerance.factor_dtype(dtype)
    of_inverse = (r + 1) ** 1.5 * tolerance.gamma(length + r + 2, torch.float64) * condition
    of_product = r**0.5 * (tolerance.gamma(r + 2, work) + tolerance.UNIT[work])
    size = inverse * grad.norm(dim=0)
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps * r
    return (of_inverse + of_product) * size + tolerance.UNIT[dtype] * exact.norm(dim=0) + smallest


def assert_close(found: tuple[Tensor, Tensor], given: Case, damping: float = DAMPING) -> None:
    grad_a, grad_b, a, b = (x.double() for x in given)
    dtype = given[0].dtype
    exact = reference.scaled_gradients(grad_a, grad_b, a, b, damping)
    sides = ((found[0], exact[0], b, grad_a), (found[1].mT, exact[1].mT, a.mT, grad_b.mT))
    for new, want, factor, grad in sides:
        assert new.dtype == dtype and new.shape == want.shape
        if want.numel():
            limit = bound(want, factor.mT @ factor, grad, len(factor), dtype, damping)
            assert bool(((new.double() - want).norm(dim=0) <= limit).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_of_a_list_is_that_of_the_reference(dtype: torch.dtype) -> None:
    some = [case(*shape, dtype=dtype) for shape in SHAPES]
    for found, given in zip(scaled(some), some, strict=True):
        assert_close(found, given)


def test_each_pair_has_its_damping_and_the_bits_that_it_has_alone() -> None:
    some, dampings = [case(*shape) for shape in SHAPES], [10.0 ** (i - 4) for i in range(len(SHAPES))]
    for found, given, damping in zip(scaled(some, dampings), some, dampings, strict=True):
        assert_close(found, given, damping)
        assert checks.same_bits(found, scaled([given], [damping])[0])


@pytest.mark.parametrize("layout", [name for name in layouts.LAYOUTS if name != "batch_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_any_strides_are_within_the_bounds_and_nothing_beside_is_written(dtype: torch.dtype, layout: str) -> None:
    given, lay = case(70, 130, 9, dtype), layouts.LAYOUTS[layout]
    new_a, new_b = (torch.full_like(x, torch.nan) for x in given[:2])
    if layout in ("embedded", "strided"):
        new_a, new_b = lay(new_a), lay(new_b)
    grad_a, grad_b, a, b = map(lay, given)
    scaled_gradients_list([new_a], [new_b], [grad_a], [grad_b], [a], [b], [DAMPING])
    assert_close((new_a, new_b), given)
    if layout in ("embedded", "strided"):
        assert layouts.outside_is_nan(new_a) and layouts.outside_is_nan(new_b)


def test_experts_whose_factors_interleave() -> None:
    """As `Pair.b_of` shows them: every third column."""
    whole, grads = cases.gaussian(20, 12, seed=5), cases.gaussian(20, 12, seed=6)
    new = torch.full_like(whole, torch.nan)
    views = [[x.view(20, 4, 3)[..., i] for i in range(3)] for x in (new, grads, whole)]
    inner = [case(20, 30, 4, torch.float64) for _ in range(3)]
    new_a = [torch.empty_like(one[0]) for one in inner]
    scaled_gradients_list(
        new_a, views[0], [one[0] for one in inner], views[1], [one[2] for one in inner], views[2], [DAMPING] * 3
    )
    for i, one in enumerate(inner):
        assert_close((new_a[i], views[0][i]), (one[0], views[1][i], one[2], views[2][i]))


@pytest.mark.parametrize("level", _core.isa_levels())
def test_threads_change_no_bit_and_every_level_is_within_the_bounds(level: str) -> None:
    some = [case(*shape, dtype=dtype) for shape in SHAPES for dtype in (torch.float32, torch.bfloat16)]
    with machine.isa(level):
        found = []
        for count in (1, 2, 3):
            with machine.threads(count):
                found.append(scaled(some))
    assert checks.same_bits(found[0], found[1]) and checks.same_bits(found[0], found[2])
    for one, given in zip(found[0], some, strict=True):
        assert_close(one, given)


def test_a_factor_of_zeros_leaves_the_damping() -> None:
    grad_a, grad_b, a, b = case(6, 9, 3, torch.float64)
    new_a, _ = scaled([(grad_a, grad_b, a, torch.zeros_like(b))])[0]
    torch.testing.assert_close(new_a, grad_a / DAMPING, rtol=6 * tolerance.UNIT[torch.float64], atol=0)


def test_no_pivot_vanishes_where_rounding_eats_the_damping() -> None:
    """Two equal columns: the second pivot is the damping, far below the rounding of the first."""
    grad_a, grad_b, a, b = case(8, 5, 2)
    b[:, 1] = b[:, 0]
    new_a, new_b = scaled([(grad_a, grad_b, a, b)], [1e-30])[0]
    assert bool(new_a.isfinite().all()) and bool(new_b.isfinite().all())


def test_a_factor_that_is_not_finite_gives_nan() -> None:
    grad_a, grad_b, a, b = case(8, 5, 2)
    b[3, 1] = torch.inf
    new_a, new_b = scaled([(grad_a, grad_b, a, b)])[0]
    assert bool(new_a.isnan().all()) and bool(new_b.isfinite().all())


@pytest.mark.parametrize("which", range(6))
def test_what_does_not_fit_is_refused_and_nothing_written(which: int) -> None:
    grad_a, grad_b, a, b = case(8, 5, 2)
    lists = [torch.full_like(grad_a, 7.0), torch.full_like(grad_b, 7.0), grad_a, grad_b, a, b]
    lists[which] = torch.zeros(3, 9)
    with pytest.raises(ValueError, match="do not fit"):
        scaled_gradients_list(*([x] for x in lists), [DAMPING])  # type: ignore[misc]
    assert all(bool((x == 7.0).all()) for i, x in enumerate(lists[:2]) if i != which)
    with pytest.raises(ValueError, match="must not share memory"):
        scaled_gradients_list([grad_a], [grad_b.clone()], [grad_a], [grad_b], [a], [b], [DAMPING])
