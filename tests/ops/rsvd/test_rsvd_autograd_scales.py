"""Derivatives of the decompositions at every size at which torch.linalg.svd's own are right, and beyond; of losses of
`s` alone where singular values repeat or vanish."""

from __future__ import annotations

from collections.abc import Callable

import lowrank_core
import pytest
import torch
from testing import cases, tolerance
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

Triplet = tuple[Tensor, Tensor, Tensor]
M, N = 8, 6
EXPONENTS = {torch.float32: (-120, -62, -33, 0, 30, 62, 120), torch.float64: (-1000, -500, -90, 0, 90, 500, 1000)}
TORCH_IS_RIGHT = {torch.float32: 33, torch.float64: 500}  # exponents up to here


def exact(a: Tensor, rank: int) -> Triplet:
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    return u[..., :rank], s[..., :rank], vh[..., :rank, :]


def lowrank(a: Tensor, rank: int) -> Triplet:
    u, s, v = lowrank_core.svd_lowrank(a, rank, 60)  # without oversampling: until it has converged
    return u, s, v.mT


def through_a_product(a: Tensor, rank: int) -> Triplet:
    eye = torch.eye(a.shape[-1], dtype=a.dtype)
    return tuple(lowrank_core.factored_svd(a, eye.expand(*a.shape[:-2], -1, -1), rank=rank))


CALLS: dict[str, Callable[[Tensor, int], Triplet]] = {
    "rsvd": lambda a, rank: tuple(lowrank_core.rsvd(a, rank, precision="highest")),
    "svd_lowrank": lowrank,
    "factored_svd": through_a_product,
}


def loss(u: Tensor, s: Tensor, vh: Tensor, exponent: int) -> Tensor:
    """Of all three factors, free of signs and as large for every size."""
    left, right = (cases.gaussian(k, 1, seed=5)[:, 0].to(u.dtype) for k in (M, N))
    total = ((u.mT @ left).square() + (vh @ right).square() + s * 2.0**-exponent).sum()
    return total


def gradient(call: Callable[[Tensor, int], Triplet], a: Tensor, rank: int, exponent: int) -> Tensor:
    """With respect to a / 2^exponent, in float64."""
    x = (a * 2.0**exponent).requires_grad_()
    (found,) = torch.autograd.grad(loss(*call(x, rank), exponent), x)
    return found.double() * 2.0**exponent


def bound(a: Tensor, rank: int, found: Tensor) -> float:
    """The factors' rounding, magnified by the smallest gap of squared values, those cut off included."""
    squares = torch.linalg.svdvals(a.double()).square()
    gaps = -torch.cat([squares, squares.new_zeros(1)]).diff()[:rank]
    return 4 * tolerance.gamma(M + N, a.dtype) * float(squares[0] / gaps.min()) * tolerance.norm(found)


def matrix(dtype: torch.dtype) -> Tensor:
    values = 1.6 ** torch.arange(N, 0, -1, dtype=torch.float64)
    return cases.with_spectrum(M, N, values).to(dtype)


@pytest.mark.parametrize("call", list(CALLS))
@pytest.mark.parametrize("dtype", list(EXPONENTS), ids=str)
@pytest.mark.parametrize("rank", [3, N])
def test_any_size(rank: int, dtype: torch.dtype, call: str) -> None:
    a = matrix(dtype)
    usual = gradient(exact, a.double(), rank, 0)
    allowed = bound(a, rank, usual)
    for exponent in EXPONENTS[dtype]:
        ours = gradient(CALLS[call], a, rank, exponent)
        assert tolerance.norm(ours - usual) <= allowed
        if abs(exponent) <= TORCH_IS_RIGHT[dtype]:
            assert tolerance.norm(ours - gradient(exact, a, rank, exponent)) <= 2 * allowed


@pytest.mark.parametrize("dtype", list(EXPONENTS), ids=str)
def test_a_batch_of_all_sizes(dtype: torch.dtype) -> None:
    """Each member is divided by its own power of two."""
    a, exponents = matrix(dtype), EXPONENTS[dtype]
    sizes = torch.tensor([2.0**e for e in exponents], dtype=dtype).reshape(-1, 1, 1)
    x = (a * sizes).requires_grad_()
    u, s, vh = lowrank_core.rsvd(x, 3, precision="highest")
    members = [loss(*part, e) for *part, e in zip(u, s, vh, exponents, strict=True)]
    (together,) = torch.autograd.grad(sum(members), x)
    for found, exponent in zip(together, exponents, strict=True):
        alone = gradient(CALLS["rsvd"], a, 3, exponent)
        assert tolerance.norm(found.double() * 2.0**exponent - alone) <= bound(a, 3, alone)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_a_loss_of_another_size(size: float) -> None:
    """The gradients that arrive may have squares that do not fit, either."""
    a = matrix(torch.float32)
    plain, found = [], []
    for factor, to in ((1.0, plain), (size, found)):
        x = a.clone().requires_grad_()
        to.extend(torch.autograd.grad(factor * loss(*lowrank_core.rsvd(x, 3), 0), x))
    assert tolerance.norm(found[0].double() / size - plain[0]) <= bound(a, 3, plain[0])


@pytest.mark.parametrize("exponent", [-300, 0, 300])
@pytest.mark.parametrize("call", list(CALLS))
def test_second_derivatives_at_any_size(call: str, exponent: int) -> None:
    """Finite differences of a matrix near 1 that is multiplied before it is decomposed."""
    x = cases.with_spectrum(5, 4, 1.6 ** torch.arange(4, 0, -1, dtype=torch.float64)).requires_grad_()

    def scaled(a: Tensor) -> Triplet:
        u, s, vh = CALLS[call](a * 2.0**exponent, 4)
        return u, s * 2.0**-exponent, vh

    assert gradcheck(scaled, (x,))
    assert gradgradcheck(scaled, (x,))


def repeated(dtype: torch.dtype) -> dict[str, Tensor]:
    q, p = cases.orthonormal(M, N).to(dtype), cases.orthonormal(N, N, seed=1).to(dtype)
    spectra = {"twice": [3.0, 2.0, 2.0, 1.0, 1.0, 1.0], "low rank": [3.0, 3.0, 1.0, 0.0, 0.0, 0.0]}
    found = {name: q * torch.tensor(values, dtype=dtype) @ p.mT for name, values in spectra.items()}
    eye, zeros = torch.eye(M, N, dtype=dtype), torch.zeros(M, N, dtype=dtype)
    one = torch.zeros(M, N, dtype=dtype)
    one[2, 3] = 5.0
    return found | {"identity": eye, "zeros": zeros, "one element": one, "ones": torch.ones(M, N, dtype=dtype)}


SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {  # symmetric in s, flat at 0: a derivative wherever values are equal
    "sum of squares": lambda s: s.square().sum(),
    "cubes": lambda s: s.pow(3).sum(),
    "log det": lambda s: (1 + s.square()).log().sum(),
}


@pytest.mark.parametrize("call", list(CALLS))
@pytest.mark.parametrize("dtype", list(EXPONENTS), ids=str)
def test_losses_of_values_that_repeat(dtype: torch.dtype, call: str) -> None:
    members = repeated(dtype)
    for name, function in SMOOTH.items():
        for a in (*members.values(), torch.stack(list(members.values()))):
            ours, theirs = a.clone().requires_grad_(), a.clone().requires_grad_()
            function(CALLS[call](ours, N)[1]).backward()
            function(exact(theirs, N)[1]).backward()
            rounding = 8 * tolerance.gamma(M + N, dtype) * max(tolerance.norm(theirs.grad), tolerance.norm(a) ** 2)
            assert tolerance.norm(ours.grad - theirs.grad) <= rounding, name


@pytest.mark.parametrize("call", list(CALLS))
@pytest.mark.parametrize("name", list(repeated(torch.float32)))
@pytest.mark.parametrize("rank", [1, 2, N])
def test_the_sum_of_values_always_has_a_gradient(rank: int, name: str, call: str) -> None:
    """Of size one in every direction kept, as torch's; also where a value that is kept equals one that is cut off."""
    a = repeated(torch.float64)[name].requires_grad_()
    s = CALLS[call](a, rank)[1]
    (found,) = torch.autograd.grad(s.sum(), a)
    values = torch.linalg.svdvals(found)
    expected = torch.cat([torch.ones(rank), torch.zeros(N - rank)]).double()
    assert tolerance.norm(values - expected) <= 8 * tolerance.orthonormality(torch.float64, N) * N


def test_a_member_that_is_not_asked_does_not_spoil_its_batch() -> None:
    """Vectors of one matrix, values of another whose values are equal."""
    a = torch.stack([matrix(torch.float64), torch.eye(M, N).double()]).requires_grad_()
    u, s, vh = lowrank_core.rsvd(a, N)
    (found,) = torch.autograd.grad(loss(u[0], s[0], vh[0], 0) + s[1].sum(), a)
    alone = gradient(exact, matrix(torch.float64), N, 0)
    assert tolerance.norm(found[0] - alone) <= bound(matrix(torch.float64), N, alone)
    assert tolerance.norm(found[1] - torch.eye(M, N)) <= 8 * tolerance.orthonormality(torch.float64, N) * N


def test_vectors_of_equal_values_still_have_no_derivative() -> None:
    a = torch.eye(M, N, dtype=torch.float64).requires_grad_()
    u = lowrank_core.rsvd(a, N).u
    (found,) = torch.autograd.grad((u * cases.gaussian(M, N)).sum(), a)
    assert not bool(found.isfinite().all())
