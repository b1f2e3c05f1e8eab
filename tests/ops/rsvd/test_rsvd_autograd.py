"""Derivatives: finite differences, and autograd through the exact decomposition truncated by hand."""

from __future__ import annotations

from collections.abc import Callable

import lowrank_core
import pytest
import torch
from lowrank_core.reference import rsvd as reference
from testing import cases, tolerance
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

Function = Callable[..., tuple[Tensor, ...]]


def matrix(m: int, n: int, *, requires_grad: bool = True) -> Tensor:
    """Distinct singular values, the gap growing with their size: 1, 2, 4, ... (the last ones 1/8 apart at least)."""
    values = 1.6 ** torch.arange(min(m, n), 0, -1, dtype=torch.float64)
    return cases.with_spectrum(m, n, values).requires_grad_(requires_grad)


def weights(out: tuple[Tensor, ...], seed: int = 7) -> list[Tensor]:
    return [cases.gaussian(x.numel(), 1, seed=seed + i).reshape(x.shape) for i, x in enumerate(out)]


def gradient(function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Of a fixed linear function of all outputs."""
    out = function(*inputs)
    loss = sum((w * x.double()).sum() for w, x in zip(weights(out), out, strict=True))
    return torch.autograd.grad(loss, inputs)


def truncated(rank: int) -> Function:
    return lambda a: reference.truncated_svd(a, rank)


# Oversampled to the full width the random decomposition is the exact one, whatever rank is kept.
def full_width(rank: int) -> Function:
    return lambda a: tuple(lowrank_core.rsvd(a, rank, oversample=max(a.shape)))


SHAPES = [(7, 5, 3), (5, 7, 3), (6, 6, 2), (6, 6, 6), (7, 5, 5), (5, 7, 5), (5, 4, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rsvd_gradcheck(shape: tuple[int, int, int]) -> None:
    m, n, rank = shape
    a = matrix(m, n)
    assert gradcheck(full_width(rank), (a,))
    assert gradgradcheck(full_width(rank), (a,))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rsvd_gradient_is_that_of_the_truncated_decomposition(shape: tuple[int, int, int]) -> None:
    m, n, rank = shape
    a = matrix(m, n)
    (ours,), (exact,) = gradient(full_width(rank), a), gradient(truncated(rank), a)
    assert tolerance.norm(ours - exact) <= gradient_bound(a, exact)


def gradient_bound(a: Tensor, exact: Tensor) -> float:
    """Both are solved with the factors' rounding, magnified by 1 / (smallest gap of the squared values)."""
    s = torch.linalg.svdvals(a.detach().double())
    squares = torch.cat([s, s.new_zeros(1)]).square()
    condition = float(squares[0] / -squares.diff().max())
    return 4 * tolerance.gamma(sum(a.shape), a.dtype) * condition * tolerance.norm(exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_random_sketch_gives_the_exact_gradient(dtype: torch.dtype) -> None:
    """Truncated far below the full width, where the sketch has converged: the residual enters the derivative."""
    values = torch.cat([torch.tensor([16.0, 12.0, 9.0, 7.0]), torch.linspace(0.2, 0.1, 36)]).double()
    a = cases.with_spectrum(50, 40, values).to(dtype).requires_grad_()
    (ours,) = gradient(lambda x: tuple(lowrank_core.rsvd(x, 4, niter=6, precision="highest")), a)
    (exact,) = gradient(truncated(4), a)
    s2 = values.square()
    condition = float(s2[0] / (s2[2] - s2[3]))
    assert ours.dtype == dtype
    assert tolerance.norm(ours - exact) <= 4 * tolerance.gamma(90, dtype) * condition * tolerance.norm(exact)


def test_neglecting_the_residual_would_be_seen() -> None:
    """That the test above can fail: the textbook formula, which drops it, is off by far more than the bound."""
    a = matrix(7, 5)
    u, s, vh = (x.detach() for x in reference.truncated_svd(a, 3))
    low = (u * s @ vh).requires_grad_()  # rank 3 exactly: no residual
    (without,) = gradient(full_width(3), low)
    (exact,) = gradient(truncated(3), a)
    assert tolerance.norm(without - exact) > 1e3 * gradient_bound(a, exact)


def test_svd_lowrank_gradcheck() -> None:
    def function(a: Tensor) -> tuple[Tensor, ...]:
        return lowrank_core.svd_lowrank(a, 5, 1)

    for shape in ((7, 5), (5, 7)):
        a = matrix(*shape)
        assert gradcheck(function, (a,))
        assert gradgradcheck(function, (a,))


@pytest.mark.parametrize("shape", [(6, 3, 5, 2), (6, 3, 5, 3), (4, 7, 5, 2), (3, 5, 3, 3), (5, 5, 5, 4)], ids=str)
def test_factored_svd_gradcheck(shape: tuple[int, int, int, int]) -> None:
    """The inner dimension below and above the others, truncated and not."""
    m, k, n, rank = shape
    b, a = matrix(m, k), (cases.orthonormal(n, min(k, n)).mT if k <= n else cases.orthonormal(k, n)).requires_grad_()

    def function(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return tuple(lowrank_core.factored_svd(x, y, rank=rank))

    assert gradcheck(function, (b, a))
    assert gradgradcheck(function, (b, a))
    ours = gradient(function, b, a)
    exact = gradient(lambda x, y: reference.factored_svd(x, y, rank=rank), b, a)
    for x, y in zip(ours, exact, strict=True):
        assert tolerance.norm(x - y) <= gradient_bound(b.detach() @ a.detach(), y)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batched_basis", [False, True])
def test_projection_gradcheck(side: str, batched_basis: bool) -> None:
    g = cases.gaussian(5, 4, 2).requires_grad_()
    outer = 5 if side == "left" else 4
    basis = cases.gaussian(outer, 3, *((2,) if batched_basis else ()), seed=1).requires_grad_()
    low = cases.gaussian(*((3, 4) if side == "left" else (5, 3)), 2, seed=2).requires_grad_()
    for function, x in ((lowrank_core.project, g), (lowrank_core.project_back, low)):
        assert gradcheck(lambda y, b, f=function: f(y, b, side=side), (x, basis))
        assert gradgradcheck(lambda y, b, f=function: f(y, b, side=side), (x, basis))


def test_batched_gradient_is_that_of_the_members() -> None:
    a = torch.stack([matrix(6, 5, requires_grad=False) * f for f in (1.0, 0.5, 2.0)]).requires_grad_()
    w = weights(tuple(lowrank_core.rsvd(a[0], 2)))
    together = lowrank_core.rsvd(a, 2)
    (batched,) = torch.autograd.grad(sum((i * x).sum() for i, x in zip(w, together, strict=True)), a)
    for member, one in zip(batched, a, strict=True):
        leaf = one.detach().requires_grad_()
        (alone,) = gradient(lambda x: tuple(lowrank_core.rsvd(x, 2)), leaf)
        assert tolerance.norm(member - alone) <= gradient_bound(leaf, alone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_gradients_have_the_dtype_of_their_input(dtype: torch.dtype) -> None:
    """Computed in float32, rounded once."""
    a = matrix(20, 15, requires_grad=False).to(dtype).requires_grad_()
    wide = a.detach().double().requires_grad_()
    (ours,) = gradient(lambda x: tuple(lowrank_core.rsvd(x, 3, oversample=20, precision="highest")), a)
    (exact,) = gradient(truncated(3), wide)
    assert ours.dtype == dtype
    bound = gradient_bound(a.detach().float(), exact) + tolerance.UNIT[dtype] * tolerance.norm(exact)
    assert tolerance.norm(ours.double() - exact) <= bound


def test_only_what_is_used_is_differentiated() -> None:
    a = matrix(7, 5)
    u, s, vh = lowrank_core.rsvd(a, 2)
    (ours,) = torch.autograd.grad(s.sum(), a)
    expected = u.detach() @ vh.detach()  # d sum(s) = U Vᵀ
    assert tolerance.norm(ours - expected) <= gradient_bound(a, expected)


def test_a_basis_gets_no_gradient() -> None:
    a, basis = matrix(7, 5), cases.gaussian(7, 2).requires_grad_()
    out = lowrank_core.rsvd(a, 2, basis=basis, oversample=5)
    given, none = torch.autograd.grad(out.s.sum(), (a, basis), allow_unused=True)
    assert none is None and given is not None


@pytest.mark.parametrize("rank", [0, 1])
def test_gradient_of_nothing(rank: int) -> None:
    a = matrix(4, 3)
    (ours,) = gradient(lambda x: tuple(lowrank_core.rsvd(x, rank)), a)
    assert ours.shape == a.shape and bool(ours.isfinite().all())
    assert rank == 1 or not ours.any()


def test_a_gap_too_small_is_named() -> None:
    """s[r-1] equal to the first value cut off: the span has no derivative."""
    a = torch.eye(6, 5, dtype=torch.float64).requires_grad_()
    u = lowrank_core.rsvd(a, 2).u
    with pytest.raises(RuntimeError, match=r"rsvd: the derivative did not converge.*choose a rank with a gap"):
        (u * cases.gaussian(6, 2)).sum().backward()


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("range_finder", lambda a: lowrank_core.range_finder(a, 2)),
        ("orthonormalize", lambda a: lowrank_core.orthonormalize(a)),
    ],
)
def test_what_has_no_derivative_says_so(name: str, call: Callable[[Tensor], Tensor]) -> None:
    q = call(matrix(7, 5))
    assert q.requires_grad
    with pytest.raises(NotImplementedError, match=f"{name}: has no derivative; detach its input"):
        q.sum().backward()


@pytest.mark.parametrize("op", ["rsvd", "svd_lowrank", "factored_svd"])
def test_autocast_does_not_reach_the_derivative(op: str) -> None:
    a = matrix(20, 15, requires_grad=False).float().requires_grad_()
    calls: dict[str, Function] = {
        "rsvd": lambda x: tuple(lowrank_core.rsvd(x, 3)),
        "svd_lowrank": lambda x: lowrank_core.svd_lowrank(x, 3),
        "factored_svd": lambda x: tuple(lowrank_core.factored_svd(x, x.mT, rank=3)),
    }
    (plain,) = gradient(calls[op], a)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (cast,) = gradient(calls[op], a)
    assert torch.equal(plain, cast)
