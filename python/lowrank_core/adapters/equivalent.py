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

    Matrices [r, r] are float64, and so are the sums over m and n that make them. They are rounded to the dtype of
    the arguments for the long products, as if one rounding of the gradients had been another.

    Args:
      ga, a: [..., r, n]; ga = s Bᵀ G. gb, b: [..., m, r]; gb = s G Aᵀ. float32 or float64, all of one.
      scale: s, [..., 1, 1], float64; where it is 0 nothing moves.

    Source: Wang et al. 2024 (arXiv:2407.18242), theorems 2.1 and 2.3.
    """
    square = torch.where(scale != 0, scale.square().reciprocal(), 0.0)
    wide_a, wide_b = a.double(), b.double()
    (left, p), (right, q) = _eigen(wide_b.mT @ wide_b), _eigen(wide_a @ wide_a.mT)
    floors = [ridge * values.sum(-1, keepdim=True) for values in (left, right)]
    inverse_b, inverse_a = (
        (vectors * _inverse(values + floor).unsqueeze(-2)) @ vectors.mT
        for values, vectors, floor in ((left, p, floors[0]), (right, q, floors[1]))
    )
    sums = left.unsqueeze(-1) + right.unsqueeze(-2) + (floors[0] + floors[1]).unsqueeze(-1)
    inverse_b, inverse_a = inverse_b * square, inverse_a * square
    x = -p @ ((p.mT @ (inverse_b @ (ga.double() @ wide_a.mT)) @ q) * _inverse(sums)) @ q.mT
    inside = inverse_b @ (wide_b.mT @ gb.double()) @ inverse_a * torch.where(scale != 0, scale.square(), 0.0) + x
    inverse_b, inverse_a, x, inside = (one.to(a.dtype) for one in (inverse_b, inverse_a, x, inside))
    return inverse_b @ ga + x @ a, gb @ inverse_a - b @ inside


def _eigen(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues >= 0 and eigenvectors; LAPACK would not end with what is not finite, which shows in the gradients."""
    values, vectors = torch.linalg.eigh(gram.nan_to_num(0.0, 0.0, 0.0))
    return values.clamp_(min=0.0), vectors


def _inverse(values: Tensor) -> Tensor:
    return torch.where(values > 0, values.reciprocal(), 0.0)
