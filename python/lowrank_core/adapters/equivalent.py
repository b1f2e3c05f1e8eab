"""Directions of two factors whose product moves as the gradient of the whole weight would move it, as far as it can."""

from __future__ import annotations

import torch
from torch import Tensor


def equivalent_directions(
    ga: Tensor, gb: Tensor, a: Tensor, b: Tensor, scale: Tensor, ridge: float
) -> tuple[Tensor, Tensor]:
    """hA [..., r, n] and hB [..., m, r] with |s B hA + s hB A - G| least, nearest to LoRA's own gradients among these.

        hA = (BᵀB)⁻¹ gA / s² + X A,  hB = (I - B (BᵀB)⁻¹ Bᵀ) gB (AAᵀ)⁻¹ / s² - B X
        BᵀB X + X AAᵀ = -(BᵀB)⁻¹ gA Aᵀ / s²

    Any X gives the same product; this one makes |hA - gA|² + |hB - gB|² least. An eigenvalue of a Gram matrix is raised
    by `ridge` times its trace; one of zeros has the inverse zero, so at B = 0 hA = gA = 0 and hB = gB (AAᵀ)⁻¹ / s².

    Args:
      ga, a: [..., r, n]; ga = s Bᵀ G. gb, b: [..., m, r]; gb = s G Aᵀ. float64.
      scale: s, [..., 1, 1]; where it is 0 nothing moves.

    Source: Wang et al. 2024 (arXiv:2407.18242), theorems 2.1 and 2.3.
    """
    square = torch.where(scale != 0, scale.square().reciprocal(), 0.0)
    (left, p), (right, q) = _eigen(b.mT @ b), _eigen(a @ a.mT)
    floors = [ridge * values.sum(-1, keepdim=True) for values in (left, right)]
    inverse_b, inverse_a = (
        (vectors * _inverse(values + floor).unsqueeze(-2)) @ vectors.mT
        for values, vectors, floor in ((left, p, floors[0]), (right, q, floors[1]))
    )
    sums = left.unsqueeze(-1) + right.unsqueeze(-2) + (floors[0] + floors[1]).unsqueeze(-1)
    direct = square * inverse_b @ ga
    x = -p @ ((p.mT @ (direct @ a.mT) @ q) * _inverse(sums)) @ q.mT
    outside = gb - b @ (inverse_b @ (b.mT @ gb))
    return direct + x @ a, square * outside @ inverse_a - b @ x


def _eigen(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues >= 0 and eigenvectors; LAPACK would not end with what is not finite, which shows in the gradients."""
    values, vectors = torch.linalg.eigh(gram.nan_to_num(0.0, 0.0, 0.0))
    return values.clamp_(min=0.0), vectors


def _inverse(values: Tensor) -> Tensor:
    return torch.where(values > 0, values.reciprocal(), 0.0)
