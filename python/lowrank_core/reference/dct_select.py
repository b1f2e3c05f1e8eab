"""Family `dct_select` in float64: every basis as a dense matrix. Signatures are those of `lowrank_core.<name>`.

Tensors in, float64 tensors out; `dct` and `idct` are differentiable. Batched [..., m, n] like the operators. Nothing
is checked.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

Basis: TypeAlias = str | Tensor


def dct_matrix(n: int) -> Tensor:
    """C [n, n]: C[k, i] = s_k cos(pi k (2i + 1) / 2n); the phase k (2i + 1) is reduced modulo 4n as an integer."""
    k, i = torch.arange(n)[:, None], torch.arange(n)[None, :]
    table = torch.tensor([math.cos(math.pi * t / (2 * n)) for t in range(4 * n)], dtype=torch.float64)
    matrix = math.sqrt(2 / n) * table[(k * (2 * i + 1)) % (4 * n)] if n else torch.zeros(0, 0, dtype=torch.float64)
    return torch.cat([matrix[:1] / math.sqrt(2), matrix[1:]])


def hadamard_matrix(n: int) -> Tensor:
    """[n, n] by Sylvester's doubling, over sqrt n."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while matrix.shape[0] < n:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(n)


def atoms(basis: Basis, n: int) -> Tensor:
    """Q [n, n], whose columns are the atoms."""
    if isinstance(basis, Tensor):
        return basis.double()
    if basis == "identity":
        return torch.eye(n, dtype=torch.float64)
    if basis == "hadamard":
        return hadamard_matrix(n)
    return dct_matrix(n).T if basis == "dct2" else dct_matrix(n)


def dct(x: Tensor, *, dim: int = -1) -> Tensor:
    """Every line along `dim` times the matrix."""
    lines = x.double().movedim(dim, -1)
    return (lines @ dct_matrix(lines.shape[-1]).T).movedim(-1, dim)


def idct(x: Tensor, *, dim: int = -1) -> Tensor:
    """Every line along `dim` times the transposed matrix."""
    lines = x.double().movedim(dim, -1)
    return (lines @ dct_matrix(lines.shape[-1])).movedim(-1, dim)


def spectrum(g: Tensor, basis: Basis, side: str) -> Tensor:
    """All coordinates: g Q (right) or Qᵀ g (left)."""
    if side == "left":
        return atoms(basis, g.shape[-2]).T @ g.double()
    return g.double() @ atoms(basis, g.shape[-1])


def scores(s: Tensor, side: str, norm_ord: int) -> Tensor:
    """[..., n]: what ranks the atoms."""
    return s.abs().pow(norm_ord).sum(-1 if side == "left" else -2)


def dct_select(
    g: Tensor, rank: int, *, basis: Basis = "dct2", side: str = "auto", norm_ord: int = 2
) -> tuple[Tensor, Tensor, Tensor, str]:
    """(indices, coeffs, captured, side): a stable descending sort, so ties go to the lower index."""
    if side == "auto":
        side = "right" if g.shape[-2] >= g.shape[-1] else "left"
    return _select(spectrum(g, basis, side), rank, side, norm_ord)


def dct_select_feedback_(
    residual: Tensor,
    g: Tensor,
    rank: int,
    *,
    keep: float = 0.0,
    basis: Basis = "dct2",
    side: str = "right",
    norm_ord: int = 2,
) -> tuple[Tensor, Tensor, Tensor, str]:
    """The selection from the sum of coordinates; `residual` becomes that sum, the chosen ones times `keep`."""
    s = spectrum(g, basis, side) + residual.double()
    selection = _select(s, rank, side, norm_ord)
    factor = torch.ones_like(scores(s, side, norm_ord)).scatter(-1, selection[0], keep)
    residual.copy_(s * factor.unsqueeze(-1 if side == "left" else -2))
    return selection


def dct_project_back(coeffs: Tensor, indices: Tensor, n: int, *, side: str, basis: Basis = "dct2") -> Tensor:
    """coeffs Q_Iᵀ (right) or Q_I coeffs (left)."""
    chosen = atoms(basis, n).T[indices].mT  # [..., n, r]
    return chosen @ coeffs.double() if side == "left" else coeffs.double() @ chosen.mT


def rotate_moments(
    m: Tensor, v: Tensor, old_indices: Tensor, new_indices: Tensor, *, side: str
) -> tuple[Tensor, Tensor]:
    """Times Q_oldᵀ Q_new, which is 1 where the indices match."""
    turn = (old_indices.unsqueeze(-1) == new_indices.unsqueeze(-2)).double()
    if side == "left":
        return turn.mT @ m.double(), turn.mT @ v.double()
    return m.double() @ turn, v.double() @ turn


def _select(s: Tensor, rank: int, side: str, norm_ord: int) -> tuple[Tensor, Tensor, Tensor, str]:
    order = scores(s, side, norm_ord).sort(dim=-1, descending=True, stable=True).indices
    indices = order[..., :rank].sort(dim=-1).values
    energy = scores(s, side, 2)
    total = energy.sum(-1)
    captured = torch.where(total > 0, energy.gather(-1, indices).sum(-1) / total, 1.0)
    axis = -2 if side == "left" else -1
    picked = indices.unsqueeze(-1 if side == "left" else -2)
    shape = (*s.shape[:-2], rank, s.shape[-1]) if side == "left" else (*s.shape[:-1], rank)
    return indices, s.gather(axis, picked.expand(shape)), captured, side
