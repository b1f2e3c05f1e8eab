"""The basis step in float64 by dense matrices: projection onto the tangent space, then a truncated SVD."""

from __future__ import annotations

import torch
from torch import Tensor


def tangent(g: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """P_T(G) = U Uᵀ G + G V Vᵀ - U Uᵀ G V Vᵀ: the part of G that is tangent to the matrices of rank r at U S Vᵀ."""
    left, right = u @ u.mT, v @ v.mT
    return left @ g + g @ right - left @ g @ right


def before_truncation(u: Tensor, s: Tensor, v: Tensor, g: Tensor, lr: float) -> Tensor:
    """U S Vᵀ - lr P_T(G)."""
    u, s, v, g = (x.double() for x in (u, s, v, g))
    return u @ s @ v.mT - lr * tangent(g, u, v)


def augment_truncate(
    u: Tensor, s: Tensor, v: Tensor, g: Tensor, *, lr: float, tol: float, max_rank: int, min_rank: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer: the leading triplets of the matrix before truncation."""
    left, values, right = torch.linalg.svd(before_truncation(u, s, v, g, lr), full_matrices=False)
    width = min(2 * u.shape[-1], *g.shape)
    values = values[:width]
    tails = values.square().flip(0).cumsum(0).flip(0).sqrt()
    rank = int((tails > tol * tails[0]).sum()) if width else 0
    rank = min(max(min(rank, max_rank), min_rank), width)
    return left[:, :rank], values[:rank], right[:rank].mT
