"""Derivatives of everything: right in reverse mode, forward mode and what torch.func makes of both, or refused by a
sentence; never zero."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import lowrank_core
import pytest
import torch
from derivative_cases import ALL, CASES, IN_PLACE, PLAIN, Case, floats, function_of
from lowrank_core import ops
from lowrank_core.ops.declare import DECLARED
from lowrank_core.ops.operators import torch_ops
from testing import checks, tolerance
from torch import Tensor
from torch.autograd import forward_ad

# torch's own forward mode loads its formulas through torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

FORWARD = {name: case for name, case in CASES.items() if case.forward}
REVERSE = {name: case for name, case in CASES.items() if case.reverse}
BOTH = {name: case for name, case in FORWARD.items() if case.reverse}
REFUSALS = [(name, i) for name, case in {**CASES, **PLAIN}.items() if not case.forward for i in range(len(case.inputs))]


def close(found: Any, exact: Any) -> bool:
    """Sums of at most 100 products of numbers of order one, a few times over, in float64."""
    pairs = zip(floats(found), floats(exact), strict=True)
    bound = 4 * tolerance.gamma(100, torch.float64)
    return all(x.shape == y.shape and bool((x - y).abs().max() <= bound * (1 + y.abs().max())) for x, y in pairs)


def tangents(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.cos(torch.arange(x.numel(), dtype=x.dtype) + i).view_as(x) for i, x in enumerate(inputs))


def one(case: Case, i: int) -> tuple[Callable[[Tensor], Any], Tensor]:
    """The function of input i alone."""
    call = lambda x: case.call(*case.inputs[:i], x, *case.inputs[i + 1 :])  # noqa: E731
    return call, case.inputs[i]


def loss(call: Callable[..., Any]) -> Callable[..., Tensor]:
    """A scalar whose derivatives of every order differ from zero."""
    return lambda *x: sum(
        (y.double() * torch.cos(torch.arange(y.numel()).view_as(y))).sum() ** 3 for y in floats(call(*x))
    )


# ---- nothing is left out -------------------------------------------------------------------------------------------


def test_every_operator_and_every_function_has_a_row() -> None:
    torch_ops()  # with what only torch needs
    behind = {name for case in ALL.values() for name in case.ops}
    assert {op.name for family in DECLARED.values() for op in family} == behind
    public = {name for module in (lowrank_core, ops) for name in module.__all__}
    functions = {name for name in public if inspect.isfunction(getattr(ops, name, None))}
    assert functions == {function_of(name) for name in ALL}


# ---- forward mode --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORWARD)
def test_tangents_are_those_of_the_exact_function(name: str) -> None:
    """Of all arguments together and of each alone, by torch.func and by dual tensors."""
    case = FORWARD[name]
    assert case.exact is not None
    directions = tangents(case.inputs)
    found = torch.func.jvp(case.call, case.inputs, directions)
    assert close(found[1], torch.func.jvp(case.exact, case.inputs, directions)[1])
    assert checks.same_bits(floats(found[0]), floats(case.call(*case.inputs)))
    for i, direction in enumerate(directions):
        call, x = one(case, i)
        exact, _ = one(case._replace(call=case.exact), i)
        expected = floats(torch.func.jvp(exact, (x,), (direction,))[1])
        with forward_ad.dual_level():
            out = floats(call(forward_ad.make_dual(x, direction)))
            duals = [forward_ad.unpack_dual(y).tangent for y in out]
        assert close(tuple(torch.zeros_like(y) if t is None else t for y, t in zip(out, duals, strict=True)), expected)
        assert any(y.any() for y in expected)


@pytest.mark.parametrize(("name", "i"), REFUSALS)
def test_what_has_no_tangent_says_so(name: str, i: int) -> None:
    call, x = one(ALL[name], i)
    sentence = (
        "("
        + "|".join((function_of(name), "positive_features", "attention_operands"))
        + "): has no (forward-mode )?derivative"
    )
    with pytest.raises(NotImplementedError, match=sentence):
        torch.func.jvp(lambda y: floats(call(y)), (x,), (torch.ones_like(x),))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=sentence):
        call(forward_ad.make_dual(x, torch.ones_like(x)))
    with torch.no_grad(), forward_ad.dual_level(), pytest.raises(NotImplementedError, match=sentence):
        call(forward_ad.make_dual(x, torch.ones_like(x)))


def test_tangents_in_half_precision_and_with_a_batch() -> None:
    """The dtype of the result; a plain basis for a batch."""
    g, basis = CASES["project"].inputs
    batch = torch.stack([g, 2 * g])
    for dtype in (torch.bfloat16, torch.float64):
        x, p = batch.to(dtype), basis.to(dtype)
        out, tangent = torch.func.jvp(lambda x, p: lowrank_core.project(x, p, side="left"), (x, p), (x, p))
        assert out.dtype == tangent.dtype == dtype
        bound = tolerance.product(p.double().mT, x.double(), dtype)
        assert bool(((tangent.double() - 2 * (p.double().mT @ x.double())).abs() <= 4 * bound).all())


@pytest.mark.parametrize("dual", ["u", "v"])
def test_gradients_of_a_layer_whose_u_or_v_is_dual_are_refused(dual: str) -> None:
    from derivative_cases import LB, S, V, W, X

    x = X.clone().requires_grad_()
    with forward_ad.dual_level():
        given = {"u": LB, "v": V}
        given[dual] = forward_ad.make_dual(given[dual], torch.ones_like(given[dual]))
        out = lowrank_core.usv_linear(x, W, given["u"], S, given["v"], scale=0.5)
        with pytest.raises(NotImplementedError, match="usv_linear: has no second derivative through `u` and `v`"):
            torch.autograd.grad(out.square().sum(), x, create_graph=True)


def test_the_tangents_of_u_and_v() -> None:
    """True ones, where reverse mode leaves the gradients of K and L."""
    from derivative_cases import LB, S, V, W, X

    ours = lambda u, v: lowrank_core.usv_linear(X, W, u, S, v, scale=0.5)  # noqa: E731
    exact = lambda u, v: X @ W.mT + 0.5 * X @ v @ S.mT @ u.mT  # noqa: E731
    directions = tangents((LB, V))
    assert close(*(torch.func.jvp(f, (LB, V), directions)[1] for f in (ours, exact)))


# ---- both modes, one over the other --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOTH)
def test_second_derivatives_in_every_order_of_modes(name: str) -> None:
    case = BOTH[name]
    assert case.exact is not None
    modes = (torch.func.jacfwd, torch.func.jacrev)
    for i in range(len(case.inputs)):
        call, x = one(case, i)
        exact, _ = one(case._replace(call=case.exact), i)
        expected = torch.autograd.functional.hessian(loss(exact), x)
        size = expected.abs().max()
        for outer, inner in itertools.product(modes, modes):
            found = outer(inner(loss(call)))(x)
            assert bool((found - expected).abs().max() <= 1e3 * tolerance.gamma(100, x.dtype) * size)


@pytest.mark.parametrize("name", BOTH)
def test_gradients_inside_a_dual_level(name: str) -> None:
    """torch.autograd.grad while an argument is dual: the tangent of each gradient, or the refusal of torch.func."""
    case = BOTH[name]
    assert case.exact is not None
    for i, direction in enumerate(tangents(case.inputs)):
        for j in range(len(case.inputs)):
            gradient = torch.func.grad(loss(case.exact), argnums=j)
            changed = lambda x: gradient(*case.inputs[:i], x, *case.inputs[i + 1 :])  # noqa: B023, E731
            expected = torch.func.jvp(changed, (case.inputs[i],), (direction,))[1]
            with forward_ad.dual_level():
                inputs = [x.clone().requires_grad_(k == j) for k, x in enumerate(case.inputs)]
                inputs[i] = forward_ad.make_dual(inputs[i], direction)
                (found,) = torch.autograd.grad(loss(case.call)(*inputs), [inputs[j]], create_graph=True)
                tangent = forward_ad.unpack_dual(found).tangent
            assert close(torch.zeros_like(expected) if tangent is None else tangent, expected), (i, j)


@pytest.mark.parametrize("name", ["lora_linear", "usv_linear", "chain_matmul", "project"])
def test_mixed_second_derivatives(name: str) -> None:
    """Of every pair of arguments, forward over reverse and reverse over reverse."""
    case = CASES[name]
    argnums = tuple(range(len(case.inputs)))
    assert case.exact is not None
    exact = torch.autograd.functional.hessian(loss(case.exact), case.inputs)
    for outer in (torch.func.jacfwd, torch.func.jacrev):
        mixed = outer(torch.func.jacrev(loss(case.call), argnums), argnums)(*case.inputs)
        for row, expected in zip(mixed, exact, strict=True):
            for x, y in zip(row, expected, strict=True):
                assert bool((x - y).abs().max() <= 1e3 * tolerance.gamma(100, x.dtype) * (1 + y.abs().max()))


def test_third_derivatives_of_a_layer() -> None:
    case = CASES["lora_linear"]
    found, exact = (
        torch.func.jacrev(torch.func.hessian(lambda x, f=f: loss(f)(x, *case.inputs[1:])))(case.inputs[0][:1])
        for f in (case.call, case.exact)
    )
    assert bool((found - exact).abs().max() <= 1e3 * tolerance.gamma(100, exact.dtype) * exact.abs().max())


@pytest.mark.parametrize("name", [name for name in REVERSE if name not in FORWARD])
def test_second_derivatives_without_forward_mode(name: str) -> None:
    """torch.func has those of plain torch expressions; what is left of them says so."""
    call, x = one(REVERSE[name], 0)
    with pytest.raises(
        NotImplementedError, match=r"(rsvd|svd_lowrank|factored_svd|kalman_diag_gain): has no forward-mode"
    ):
        torch.func.hessian(loss(call))(x)
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(call)(leaf), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), leaf)
    twice = lambda y: torch.func.grad(lambda z: torch.func.grad(loss(call))(z).sum())(y)  # noqa: E731
    if name == "kalman_diag_gain":
        bound = 1e3 * tolerance.gamma(100, x.dtype) * second.abs().max()
        assert bool((twice(x) - second).abs().max() <= bound)
        return
    with pytest.raises(NotImplementedError, match=r"rsvd: has no second derivative under torch\.func; take"):
        twice(x)


# ---- reverse mode --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REVERSE)
def test_torch_func_grad_is_backward(name: str) -> None:
    case = REVERSE[name]
    argnums = tuple(range(len(case.inputs)))
    found = torch.func.grad(loss(case.call), argnums=argnums)(*case.inputs)
    leaves = tuple(x.clone().requires_grad_() for x in case.inputs)
    expected = torch.autograd.grad(loss(case.call)(*leaves), leaves)
    assert checks.same_bits(found, expected) and all(bool(g.any()) for g in expected)


@pytest.mark.parametrize("name", REVERSE)
def test_batched_backward_passes(name: str) -> None:
    """jacrev and is_grads_batched equal one pass each."""
    call, x = one(REVERSE[name], 0)
    leaf = x.clone().requires_grad_()
    out = floats(call(leaf))[0]
    cotangents = torch.eye(out.numel(), dtype=out.dtype).view(out.numel(), *out.shape)
    one_each = torch.stack([torch.autograd.grad(out, leaf, c, retain_graph=True)[0] for c in cotangents])
    (batched,) = torch.autograd.grad(out, leaf, cotangents, retain_graph=True, is_grads_batched=True)
    jacobian = torch.func.jacrev(lambda y: floats(call(y))[0])(x).view_as(one_each)
    bound = 1e3 * tolerance.gamma(100, x.dtype) * one_each.abs().max()  # the solver of rsvd stops for all at once
    assert bool((batched - one_each).abs().max() <= bound) and bool((jacobian - one_each).abs().max() <= bound)


@pytest.mark.parametrize("name", [name for name, case in {**CASES, **PLAIN}.items() if not case.reverse])
def test_what_has_no_gradient_says_so(name: str) -> None:
    """Also where another term of the loss has one, and for every argument by itself."""
    case = ALL[name]
    for i in range(len(case.inputs)):
        call, x = one(case, i)
        leaf = x.clone().requires_grad_()
        total = leaf.sum() + sum(y.double().sum() for y in floats(call(leaf)))
        with pytest.raises(NotImplementedError, match="has no derivative"):
            total.backward()
        with torch.no_grad():
            assert not any(y.requires_grad for y in floats(call(leaf)))


# ---- functions that write to their arguments -----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "i"), [(name, i) for name, case in IN_PLACE.items() for i in range(len(case.inputs))])
def test_in_place_functions_are_not_recorded(name: str, i: int) -> None:
    case = IN_PLACE[name]
    fresh = case._replace(inputs=tuple(x.clone() for x in case.inputs))
    call, x = one(fresh, i)
    before = [y.clone() for y in fresh.inputs]
    with pytest.raises(RuntimeError, match=f"{function_of(name)}: `.*` must not require a gradient.*detach it"):
        call(x.clone().requires_grad_())
    with pytest.raises(RuntimeError, match=f"{function_of(name)}: `.*` must not require a gradient"):
        torch.func.grad(lambda y: (call(y), y.sum())[1])(x)
    with pytest.raises(NotImplementedError, match=f"{function_of(name)}: has no derivative"):
        torch.func.jvp(lambda y: (call(y), y)[1], (x,), (torch.ones_like(x),))
    assert checks.same_bits(list(fresh.inputs), before)
    with torch.no_grad():
        call(x.clone().requires_grad_())
