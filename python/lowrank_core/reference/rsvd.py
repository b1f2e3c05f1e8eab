"""Family `rsvd` in float64: the oracle of its tests and benches. Signatures are those of `lowrank_core.<name>`.

Tensors in, float64 tensors out; every function but `qb` is differentiable where its derivative exists. Batched
[..., m, n] like the operators. Nothing is checked: a wrong argument fails somewhere inside torch.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from lowrank_core.reference.philox import sketch

Triplet: TypeAlias = tuple[Tensor, Tensor, Tensor]


def rsvd(
    a: Tensor,
    rank: int,
    *,
    oversample: int = 10,
    niter: int = 2,
    basis: Tensor | None = None,
    seed: int = 0,
    precision: str | None = None,
) -> Triplet:
    """u [..., m, r], s [..., r], vh [..., r, n]: the best rank r for `a` in the space W of its rows, or of its columns,
    that the search finds.

    X = orth(aᵀ sketch), or orth(aᵀ [basis, sketch]) in place of the first iteration; then X = orth(a X), orth(aᵀ X)
    and so on. W is X after 2 niter + 1 such crossings, or, where `krylov_pays` says so, X after max(1, 2 niter - 2)
    of them beside the X of two crossings more.

    `precision` is there for the signature alone: float64 has one.

    Source: Halko, Martinsson, Tropp 2011, algorithms 4.4 and 5.1; Musco, Musco 2015, algorithm 2 for two blocks.
    """
    m, n = a.shape[-2:]
    width = min(max(rank, 0 if basis is None else basis.shape[-1]) + oversample, m, n)
    exact = a.double()
    if basis is None:
        start = torch.from_numpy(sketch(exact.shape[-2], width, seed))
    else:
        start = _warm_start(basis.double(), width, seed)
    space, of_rows = _search(exact, start, niter if basis is None else niter - 1)
    if of_rows:
        return _fix_signs(*_best_in(space, exact, rank))
    v, s, uh = _best_in(space, exact.mT, rank)
    return _fix_signs(uh.mT, s, v.mT)


def svd_lowrank(a: Tensor, q: int = 6, niter: int = 2, *, seed: int = 0) -> Triplet:
    """(u, s, v): `rsvd` without oversampling, V instead of Vᵀ."""
    u, s, vh = rsvd(a, q, oversample=0, niter=niter, seed=seed)
    return u, s, vh.mT


def range_finder(
    a: Tensor,
    rank: int,
    *,
    oversample: int = 10,
    niter: int = 2,
    basis: Tensor | None = None,
    seed: int = 0,
    precision: str | None = None,
) -> Tensor:
    """The u of `rsvd`."""
    return rsvd(a, rank, oversample=oversample, niter=niter, basis=basis, seed=seed, precision=precision)[0]


def truncated_svd(a: Tensor, rank: int) -> Triplet:
    """What `rsvd` approximates: the leading triplets of the exact decomposition, with its signs."""
    u, s, vh = torch.linalg.svd(a.double(), full_matrices=False)
    return _fix_signs(u[..., :rank], s[..., :rank], vh[..., :rank, :])


def qb(
    a: Tensor,
    *,
    energy: float | None = None,
    tol: float | None = None,
    max_rank: int | None = None,
    block: int = 16,
    niter: int = 1,
    seed: int = 0,
) -> tuple[Tensor, Tensor, float]:
    """q [m, k], b [k, n], captured: the residual is formed and deflated, and its energy summed, at every step.

    Source: Yu, Gu, Li 2018, algorithm 2; then the SVD of b, of which the fewest directions that suffice are kept.
    """
    rest = a.double()
    total = float(rest.square().sum())
    cap = min(a.shape) if max_rank is None else max_rank
    allowed = _allowed_loss(energy, tol) * total
    q = rest.new_empty(a.shape[0], 0)
    step = 0
    while float(rest.square().sum()) > allowed and q.shape[1] < cap:
        width = min(block, cap - q.shape[1])
        y = _orth(rest @ torch.from_numpy(sketch(a.shape[1], width, seed, step=step)))
        for _ in range(niter):
            y = _orth(rest @ _orth(rest.mT @ y))
        q = torch.linalg.qr(torch.cat([q, y], dim=1)).Q
        rest = a.double() - q @ (q.mT @ a.double())
        step += 1
    left, s, vh = torch.linalg.svd(q.mT @ a.double(), full_matrices=False)
    lost = float(rest.square().sum()) + s.square().flip(0).cumsum(0).flip(0)  # if only the first 0, 1, ... are kept
    keep = int((lost > allowed).sum())
    captured = 1.0 if total == 0.0 else float(s[:keep].square().sum()) / total
    return q @ left[:, :keep], s[:keep, None] * vh[:keep], captured


def factored_svd(b: Tensor, a: Tensor, *, rank: int | None = None) -> Triplet:
    """The leading triplets of b @ a, formed."""
    full = min(*b.shape[-2:], a.shape[-1])
    return truncated_svd(b.double() @ a.double(), full if rank is None else rank)


def orthonormalize(y: Tensor, *, method: str = "auto") -> Tensor:
    """The polar factor for "newton_schulz", else the Q of QR with a positive diagonal of R."""
    if method == "newton_schulz":
        u, _, vh = torch.linalg.svd(y.double(), full_matrices=False)
        polar: Tensor = u @ vh
        return polar
    q, r = torch.linalg.qr(y.double())
    positive: Tensor = q * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).unsqueeze(-2)
    return positive


def project(g: Tensor, basis: Tensor, *, side: str) -> Tensor:
    """basisᵀ g (left) or g basis (right)."""
    return basis.double().mT @ g.double() if side == "left" else g.double() @ basis.double()


def project_back(r: Tensor, basis: Tensor, *, side: str) -> Tensor:
    """basis r (left) or r basisᵀ (right)."""
    return basis.double() @ r.double() if side == "left" else r.double() @ basis.double().mT


def _orth(y: Tensor) -> Tensor:
    q: Tensor = torch.linalg.qr(y).Q
    return q


def krylov_pays(m: int, n: int, width: int) -> bool:
    """Whether the last crossings are a block Krylov step: a choice of cost, measured."""
    return m * n >= 256 * width**2 and 2 * width <= min(m, n)


def _search(a: Tensor, start: Tensor, iterations: int) -> tuple[Tensor, bool]:
    """W with orthonormal columns, and whether it is [..., n, l or 2 l] (of rows) or [..., m, 2 l] (of columns)."""
    m, n = a.shape[-2:]
    deep = iterations > 0 and krylov_pays(m, n, start.shape[-1])
    crossings = max(1, 2 * iterations - 2) if deep else 2 * iterations + 1
    x = start
    for at in range(crossings):
        x = _orth((a if at % 2 else a.mT) @ x)
    of_rows = crossings % 2 == 1
    if deep:
        ahead = a if of_rows else a.mT
        x = _orth(torch.cat([x, ahead.mT @ _orth(ahead @ x)], dim=-1))
    return x, of_rows


def _best_in(space: Tensor, a: Tensor, rank: int) -> Triplet:
    """The leading triplets of a W Wᵀ."""
    u, s, vh = torch.linalg.svd(a @ space, full_matrices=False)
    return u[..., :rank], s[..., :rank], vh[..., :rank, :] @ space.mT


def _warm_start(basis: Tensor, width: int, seed: int) -> Tensor:
    known = basis[..., :width]
    m, fresh = basis.shape[-2], width - known.shape[-1]
    columns = torch.from_numpy(sketch(m, fresh, seed)).expand(*basis.shape[:-1], fresh)
    return torch.cat([known, columns], dim=-1)


def _fix_signs(u: Tensor, s: Tensor, vh: Tensor) -> Triplet:
    """The largest-magnitude entry of each column of u becomes positive, the first one on ties."""
    if u.shape[-2] == 0:
        return u, s, vh
    largest = u.gather(-2, u.abs().argmax(dim=-2, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(u.dtype)
    return u * sign, s, vh * sign.mT


def _allowed_loss(energy: float | None, tol: float | None) -> float:
    if energy is not None:
        return 1.0 - energy
    assert tol is not None
    return tol**2
