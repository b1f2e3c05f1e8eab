"""torch.vmap of everything: the bits of one call for each member, or a sentence."""

from __future__ import annotations

import inspect
from typing import Any

import lowrank_core
import pytest
import torch
from derivative_cases import CASES, IN_PLACE, PLAIN, Case, floats, function_of
from testing import cases, checks, tolerance
from torch import Tensor

# torch's own forward mode loads its formulas through torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
COUNT = 3


def members(x: Tensor) -> list[Tensor]:
    """Variants of an input that are as sound as it is."""
    return [x * (1 - k / 4) for k in range(COUNT)]


def each(case: Case, inputs: list[list[Tensor]]) -> tuple[Tensor, ...]:
    results = [floats(case.call(*given)) for given in zip(*inputs, strict=True)]
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


def same(name: str, found: Any, expected: Any) -> bool:
    """To the bit; the order in which a chain is multiplied depends on the number of members."""
    if name != "chain_matmul":
        return checks.same_bits(found, expected)
    bound = 4 * tolerance.gamma(100, torch.float64)
    return all(
        x.shape == y.shape and bool((x - y).abs().max() <= bound * y.abs().max())
        for x, y in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("where", ["first", "last"])
@pytest.mark.parametrize("name", CASES)
def test_mapped_calls_are_one_for_each_member(name: str, where: str) -> None:
    """All arguments mapped, and each alone; over the first dimension or the last."""
    case = CASES[name]
    mapped = lambda *x: floats(case.call(*x))  # noqa: E731
    stacked = [torch.stack(members(x), 0 if where == "first" else -1) for x in case.inputs]
    dim = 0 if where == "first" else -1
    if where == "last" and "scales" in inspect.signature(case.call).parameters:
        with pytest.raises(ValueError, match=r"`q\.scales` must be contiguous, got other strides; make it contiguous"):
            torch.vmap(mapped, in_dims=dim)(*stacked)
        return
    everything = torch.vmap(mapped, in_dims=dim)(*stacked)
    assert same(name, everything, each(case, [members(x) for x in case.inputs]))
    for i in range(len(case.inputs)):
        given = [s if j == i else x for j, (s, x) in enumerate(zip(stacked, case.inputs, strict=True))]
        found = torch.vmap(mapped, in_dims=tuple(dim if j == i else None for j in range(len(given))))(*given)
        alone = [members(x) if j == i else [x] * COUNT for j, x in enumerate(case.inputs)]
        assert same(name, found, each(case, alone))


@pytest.mark.parametrize("name", CASES)
def test_two_maps_within_each_other(name: str) -> None:
    case = CASES[name]
    call = lambda *x: floats(case.call(*x))  # noqa: E731
    nested = [torch.stack([torch.stack(members(y)) for y in members(x)]) for x in case.inputs]
    found = torch.vmap(torch.vmap(call))(*nested)
    flat = torch.vmap(call)(*(x.flatten(0, 1) for x in nested))
    assert same(name, tuple(y.flatten(0, 1) for y in found), flat)


@pytest.mark.parametrize("name", CASES)
def test_no_members_give_nothing(name: str) -> None:
    case = CASES[name]
    found = torch.vmap(lambda *x: floats(case.call(*x)))(*(x.new_empty((0, *x.shape)) for x in case.inputs))
    shapes = [(y.shape, y.dtype) for y in floats(case.call(*case.inputs))]
    assert [(y.shape[1:], y.dtype) for y in found] == shapes and all(len(y) == 0 for y in found)


@pytest.mark.parametrize("name", [*PLAIN, *IN_PLACE])
def test_what_cannot_be_mapped_says_so(name: str) -> None:
    case = {**PLAIN, **IN_PLACE}[name]
    stacked = [torch.stack(members(x)) for x in case.inputs]
    before = [x.clone() for x in stacked]
    with pytest.raises(NotImplementedError, match=f"{function_of(name)}: .* call it"):
        torch.vmap(lambda *x: (case.call(*x), x[0])[1])(*stacked)
    assert checks.same_bits(stacked, before)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.reverse])
def test_gradients_of_every_sample(name: str) -> None:
    """vmap over torch.func.grad, as per-sample gradients are taken; and the gradient of a mapped call."""
    case = CASES[name]
    loss = lambda *x: sum((y * y.detach().cos()).sum() for y in floats(case.call(*x)))  # noqa: E731
    stacked = [torch.stack(members(x)) for x in case.inputs]
    argnums = tuple(range(len(stacked)))
    one_each = [torch.func.grad(loss, argnums)(*given) for given in zip(*map(members, case.inputs), strict=True)]
    expected = [torch.stack(parts) for parts in zip(*one_each, strict=True)]
    mapped = torch.vmap(torch.func.grad(loss, argnums))(*stacked)
    total = torch.func.grad(lambda *x: torch.vmap(loss)(*x).sum(), argnums)(*stacked)
    for found in (mapped, total):
        for x, y in zip(found, expected, strict=True):
            assert bool((x - y).abs().max() <= 1e6 * torch.finfo(x.dtype).eps * y.abs().max())


def test_operators_take_any_place_of_the_mapped_dimension() -> None:
    """A dimension counted from the front, in the operator itself; chains of different numbers of dimensions."""
    x = cases.gaussian(4, 5, 3)
    lowrank_core.dct(x)
    for dim in (0, 1, -1, -2):
        mapped = torch.vmap(lambda y, dim=dim: torch.ops.lowrank_core.dct(y, dim))(x)
        assert checks.same_bits(mapped, torch.stack([lowrank_core.dct(y, dim=dim) for y in x]))
    a, b = cases.gaussian(4, 5, 3, 2), cases.gaussian(5, 2, 2)
    call: Any = lambda p, q: lowrank_core.chain_matmul([p, q])  # noqa: E731
    found = torch.vmap(call, in_dims=(1, 0))(a, b)
    assert same("chain_matmul", [found], [torch.stack([call(a[:, i], b[i]) for i in range(2)])])
