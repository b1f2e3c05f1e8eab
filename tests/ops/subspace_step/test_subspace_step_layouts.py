"""Any strides of weight, gradient and basis; what lies around them in memory stays as it was."""

from __future__ import annotations

import itertools

import pytest
import torch
from subspace_cases import (
    DTYPES,
    LIMITED,
    STRONG,
    Shape,
    Weight,
    check,
    every_residual,
    every_side,
    stepped,
    take,
    weight,
)
from testing import checks, layouts
from torch import Tensor

LAYOUTS = ("contiguous", "transposed", "embedded", "strided")
SHAPE = Shape(45, 37, 6)


def laid(w: Weight, *names: str) -> Weight:
    """The same weight with its matrices in memory of these kinds."""
    w = w.clone()
    w.param, w.grad, w.basis = (
        layouts.LAYOUTS[name](x) for name, x in zip(names, (w.param, w.grad, w.basis), strict=True)
    )
    return w


@every_side
@every_residual
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_and_nan_around(layout: str, residual: str, side: str) -> None:
    """Every layout of the weight with every one of the gradient; the basis goes along."""
    options = {**STRONG, "residual": residual}
    limit = 3.0 if residual in LIMITED else None
    for of_grad, dtype in itertools.product(LAYOUTS, DTYPES[:3]):
        before = weight(SHAPE, side=side, dtype=dtype, limit=limit)
        after = laid(before, layout, of_grad, of_grad)
        strides = after.param.stride()
        assert take(after, **options)
        check(before, after, **options)
        assert after.param.stride() == strides
        for name, x in ((layout, after.param), (of_grad, after.grad)):
            assert name not in ("embedded", "strided") or layouts.outside_is_nan(x)


@every_side
@every_residual
@pytest.mark.parametrize("of_basis", LAYOUTS)
def test_any_strides_of_the_basis(of_basis: str, residual: str, side: str) -> None:
    options = {**STRONG, "residual": residual}
    before = weight(SHAPE, side=side)
    after = laid(before, "contiguous", "transposed", of_basis)
    assert take(after, **options)
    check(before, after, **options)


@every_side
@every_residual
def test_backwards_in_memory(residual: str, side: str) -> None:
    """Negative strides, which NumPy has."""
    before = weight(SHAPE, side=side)
    after = before.clone().numpy()
    after.param, after.grad, after.basis = map(layouts.reversed_view, (after.param, after.grad, after.basis))
    assert after.param.strides[0] < 0 and take(after, residual=residual, **STRONG)
    found = after.map(lambda x: torch.from_numpy(x.copy()))
    check(before, found, residual=residual, **STRONG)


def test_moments_lie_where_they_are() -> None:
    """Contiguous parts of one buffer, as an optimizer may keep them: neighbours are not touched."""
    before = weight(SHAPE)
    size = before.exp_avg.numel()
    buffer = torch.full((2 * size + 3,), torch.nan)
    after = before.clone()
    after.exp_avg, after.exp_avg_sq = (buffer[i : i + size].view(SHAPE.rank, SHAPE.other) for i in (1, size + 2))
    after.exp_avg.copy_(before.exp_avg)
    after.exp_avg_sq.copy_(before.exp_avg_sq)
    assert take(after, **STRONG)
    check(before, after, **STRONG)
    assert buffer.isnan().nonzero().flatten().tolist() == [0, size + 1, 2 * size + 2]


@every_side
def test_parameters_and_their_gradients(side: str) -> None:
    """A leaf that requires gradients is stepped under no_grad; `.grad` keeps its shape and its bits."""
    before = weight(SHAPE, side=side)
    after = before.clone()
    after.param = torch.nn.Parameter(after.param)
    after.param.grad = after.grad
    with torch.no_grad():
        assert take(after, **STRONG)
    expected = stepped(before, **STRONG)
    assert checks.same_bits(after.param.detach(), expected.param)
    assert after.param.grad is after.grad and checks.same_bits(after.grad, before.grad)


def test_shared_gradients_and_bases() -> None:
    """Two weights may have one gradient and one basis: they are only read."""
    first = weight(SHAPE)
    second = first.clone()
    second.grad, second.basis = first.grad, first.basis
    alone: Tensor = stepped(first, **STRONG).param
    assert take(first, second, **STRONG)
    assert checks.same_bits(first.param, alone) and checks.same_bits(second.param, alone)
