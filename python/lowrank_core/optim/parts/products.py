"""The products into and out of a subspace, and the search for one: by kernels, or by torch operations on other devices.

The search by torch operations is the textbook's: its subspaces differ from those of the kernels and are as good.
Nothing here but `near_one` waits for a device. Determinism without kernels: D2 (within a stated bound;
docs/numerics.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import frexp
from typing import NamedTuple

import torch
from torch import Tensor

from lowrank_core.ops.normal import fill_normal
from lowrank_core.ops.rsvd.factor import RESOLUTION, orthonormalize
from lowrank_core.ops.rsvd.fixed_rank import rsvd_unrecorded
from lowrank_core.ops.rsvd.lists import find_into, qb_list
from lowrank_core.ops.rsvd.projection import project_back_unrecorded, project_unrecorded
from lowrank_core.ops.subspace_step.plain import norms_list
from lowrank_core.optim.devices import has_kernels
from lowrank_core.optim.dtypes import name_of, work_dtype

_SPARE = 10  # columns beside the rank, where vectors are counted without kernels


class Search(NamedTuple):
    """One matrix whose leading left singular vectors are looked for."""

    matrix: Tensor  # [m, n], any floating dtype
    rank: int
    basis: Tensor | None  # [m, rank], to start from
    seed: int


def project(grad: Tensor, basis: Tensor, side: str) -> Tensor:
    """basis^T grad (left) or grad basis (right)."""
    if has_kernels(grad.device):
        low: Tensor = project_unrecorded(grad, basis, side)
        return low
    return basis.mT @ grad if side == "left" else grad @ basis


def project_back(low: Tensor, basis: Tensor, side: str) -> Tensor:
    """basis low (left) or low basis^T (right)."""
    if has_kernels(low.device):
        lifted: Tensor = project_back_unrecorded(low, basis, side)
        return lifted
    return basis @ low if side == "left" else low @ basis.mT


def left_vectors(searches: Sequence[Search], *, oversample: int, niter: int) -> list[Tensor]:
    """[m, rank] each, orthonormal, in the working dtype; all of `searches` have a basis, or none."""
    if not searches or not has_kernels(searches[0].matrix.device):
        return [_left_vectors(search, oversample, niter) for search in searches]
    found = [
        torch.empty(*matrix.shape[:-1], search.rank, dtype=work_dtype(matrix.dtype), device=matrix.device)
        for search in searches
        for matrix in (search.matrix,)
    ]
    find_into(
        found,
        [search.matrix for search in searches],
        oversample=oversample,
        niter=niter,
        bases=[search.basis for search in searches],
        seeds=[search.seed for search in searches],
    )
    return found


def growing_vectors(searches: Sequence[Search], *, niter: int) -> list[tuple[Tensor, Tensor]]:
    """For each of `searches` its leading left singular vectors [m, k], and the share of |matrix|_F^2 that the first 1,
    2, ..., k of them hold, float64 [k]; k is `rank`, or fewer where what is left is nothing but rounding.
    """
    if not searches or not has_kernels(searches[0].matrix.device):
        return [_growing_vectors(search, niter) for search in searches]
    found = qb_list(
        [search.matrix for search in searches],
        tol=RESOLUTION[name_of(work_dtype(searches[0].matrix.dtype))],
        max_ranks=[search.rank for search in searches],
        niter=niter,
        seeds=[search.seed for search in searches],
    )
    return [(q, _shares(b, captured)) for q, b, captured in found]


def _growing_vectors(search: Search, niter: int) -> tuple[Tensor, Tensor]:
    q, a = _left_vectors(search._replace(basis=None), _SPARE, niter), _scaled(search.matrix)
    b = q.mT @ a
    whole = torch.linalg.vector_norm(a, dtype=torch.float64).square()
    shares = _shares(b, torch.linalg.vector_norm(b, dtype=torch.float64).square() / whole)
    left, tol = 1 - torch.cat([shares.new_zeros(1), shares[:-1]]), RESOLUTION[name_of(a.dtype)]
    count = int((left >= tol**2).sum())
    return q[:, :count], shares[:count]


def _shares(b: Tensor, captured: float | Tensor) -> Tensor:
    """Of the whole, by the first rows of `b`, which hold `captured` of it together."""
    squares = torch.linalg.vector_norm(b, dim=1, dtype=torch.float64).square()
    shares: Tensor = squares.cumsum(0) / squares.sum().clamp(min=torch.finfo(torch.float64).tiny) * captured
    return shares


def both_vectors(search: Search, *, oversample: int, niter: int) -> tuple[Tensor, Tensor]:
    """[m, rank] and [n, rank]: leading left and right singular vectors, pair by pair."""
    if has_kernels(search.matrix.device):
        options = {"oversample": oversample, "niter": niter, "seed": search.seed}
        u, _, vh = rsvd_unrecorded(search.matrix, search.rank, search.basis, **options)
        return u, vh.mT
    left = _left_vectors(search, oversample, niter)
    turn, _, vh = torch.linalg.svd(left.mT @ _scaled(search.matrix), full_matrices=False)
    left = left @ turn
    sign = leading_sign(left)
    return left * sign, vh.mT * sign


def principal_cosines(one: Tensor, other: Tensor) -> Tensor:
    """[k], descending, in [0, 1]: of the angles between the spans of two bases [m, r], whose columns need not be
    orthonormal; k is the smaller number of columns."""
    cosines: Tensor
    if not has_kernels(one.device):
        cosines = torch.linalg.svdvals(_orthonormal(one).mT @ _orthonormal(other))
    else:
        change = project_unrecorded(orthonormalize(one), orthonormalize(other), "left")
        _, cosines, _ = rsvd_unrecorded(change, min(change.shape), None, oversample=0, niter=0, seed=0)
    return cosines.clamp(max=1)


def _left_vectors(search: Search, oversample: int, niter: int) -> Tensor:
    """Subspace iteration from a Gaussian sketch, or from the basis held beside one; then the best cut to the rank.

    Source: Halko, Martinsson, Tropp 2011 (arXiv:0909.4061), algorithms 4.4 and 5.1.
    """
    a = _scaled(search.matrix)
    width = min(search.rank + oversample, *a.shape)
    if search.basis is None:
        q = _orthonormal(a @ normal(a.shape[1], width, search.seed, a))
    else:
        fresh = normal(a.shape[0], width - search.rank, search.seed, a)
        q = torch.cat([search.basis.to(a.dtype), fresh], dim=1)
    for _ in range(niter):
        q = _orthonormal(a @ _orthonormal(a.mT @ q))
    # The singular vectors of q^T a from the small triangle of its transpose.
    triangle = torch.linalg.qr(a.mT @ q).R
    cut: Tensor = q @ torch.linalg.svd(triangle.mT, full_matrices=False).U[:, : search.rank]
    return cut * leading_sign(cut)


def _orthonormal(columns: Tensor) -> Tensor:
    q: Tensor = torch.linalg.qr(columns).Q
    return q


def normal(rows: int, cols: int, seed: int, like: Tensor) -> Tensor:
    """[rows, cols] in the working dtype of `like`, on its device; the same numbers on every device."""
    drawn = torch.empty(rows, cols, dtype=work_dtype(like.dtype), device="cpu")
    fill_normal(drawn, seed)
    return drawn.to(like.device)


def _scaled(matrix: Tensor) -> Tensor:
    """`matrix` in the working dtype, divided by the power of two of its largest entry: squares keep to its range."""
    wide = matrix.to(work_dtype(matrix.dtype))
    exponent = torch.frexp(wide.abs().amax()).exponent
    return torch.ldexp(torch.ldexp(wide, -exponent // 2), -exponent - (-exponent // 2))


def total(values: Tensor) -> Tensor:
    """0-d float64: the sum of a vector. torch splits a long sum by the number of threads, which shows in the bits."""
    column = values.double()[:, None]
    return project(column, torch.ones_like(column), "left").squeeze()


def norms_of(matrices: Sequence[Tensor]) -> Tensor:
    """[count] float32: |X|_F of each of some float32 or float64 matrices on one device, summed in float64."""
    device = matrices[0].device
    if has_kernels(device):
        return torch.tensor(norms_list(list(matrices)), dtype=torch.float32, device=device)
    dims = [1 if matrix.shape[0] > 1 else 0 for matrix in matrices]
    lines = [
        torch.linalg.vector_norm(matrix, dim=dim, dtype=torch.float64)
        for matrix, dim in zip(matrices, dims, strict=True)
    ]
    return torch.stack([total(line.square()).sqrt() for line in lines]).float()


def near_one(matrix: Tensor) -> tuple[Tensor, int]:
    """`matrix` times the power of two that keeps its products from overflow and underflow, and minus its exponent;
    itself and 0 if none is needed.

    Reads its largest entry: a step that refreshes waits for an accelerator anyway.
    """
    least, most = torch.aminmax(matrix)  # ten times as quick as the largest norm
    exponent = frexp(max(float(most), -float(least)))[1]
    if abs(exponent) <= 32:
        return matrix, 0
    half = exponent // 2  # in two factors, each of which the dtype has
    return matrix * 2.0**-half * 2.0 ** (half - exponent), exponent


def orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis of `columns` [m, r], in their order; where they are dependent, with arbitrary directions."""
    if has_kernels(columns.device):
        q: Tensor = orthonormalize(columns)
        return q
    return _orthonormal(columns)


def leading_sign(basis: Tensor) -> Tensor:
    """[1, r] of +-1 that makes the largest entry by magnitude of each column positive, the first on ties."""
    leading = basis.gather(0, basis.abs().argmax(dim=0, keepdim=True))
    return torch.where(leading < 0, -1.0, 1.0).to(basis.dtype)
