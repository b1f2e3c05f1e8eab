"""Assertions that several files make of factors."""

from __future__ import annotations

import torch
from torch import Tensor

from testing import tolerance


def as_tensor(x: object) -> Tensor:
    return x if isinstance(x, Tensor) else torch.as_tensor(x)


def defect(q: Tensor) -> float:
    """Largest entry of QᵀQ - I."""
    q = q.double()
    gram = q.mT @ q - torch.eye(q.shape[-1], dtype=torch.float64)
    return float(gram.abs().max()) if gram.numel() else 0.0


def assert_orthonormal(q: Tensor, width: int | None = None) -> None:
    """`width`: how many columns q was cut out of, where that are more than it has."""
    assert defect(q) <= tolerance.orthonormality(q.dtype, q.shape[-1] if width is None else width)


def assert_signs(u: Tensor) -> None:
    """The first of the entries of largest magnitude is positive in every column."""
    if u.shape[-2] == 0:
        return
    leading = u.gather(-2, u.abs().argmax(dim=-2, keepdim=True))
    assert bool((leading > 0).all())


def image_defect(a: Tensor, u: Tensor, s: Tensor, vh: Tensor) -> float:
    """‖a V - U S‖_F or ‖aᵀ U - V S‖_F: the triplets are those of a W Wᵀ or W Wᵀ a, for the space W of rows or of
    columns that was searched."""
    left, right, values = u.double(), vh.double().mT, s.double().unsqueeze(-2)
    return min(
        tolerance.norm(a.double() @ right - left * values), tolerance.norm(a.double().mT @ left - right * values)
    )


def assert_triplet(a: Tensor, u: Tensor, s: Tensor, vh: Tensor, *, rank: int, width: int) -> None:
    """What holds for any sketch: shapes, dtypes, orthonormal factors, order, signs, and a V = U S."""
    batch, (m, n) = a.shape[:-2], a.shape[-2:]
    work = tolerance.factor_dtype(a.dtype)
    assert (u.shape, s.shape, vh.shape) == ((*batch, m, rank), (*batch, rank), (*batch, rank, n))
    assert u.dtype == s.dtype == vh.dtype == work
    space = min(2 * width, m, n)  # a block Krylov step doubles the space that is searched
    assert_orthonormal(u, space)
    assert_orthonormal(vh.mT, space)
    assert bool((s >= 0).all()) and bool((s.diff(dim=-1) <= 0).all())
    assert_signs(u)
    assert image_defect(a, u, s, vh) <= tolerance.coefficients(a, space)


def outside(basis: Tensor, q: Tensor) -> float:
    """‖(1 - B Bᵀ) q‖_F for an orthonormal B: 0 where q lies in its span."""
    b, q = basis.double(), q.double()
    return tolerance.norm(q - b @ (b.mT @ q))


def residual(a: Tensor, u: Tensor, s: Tensor, vh: Tensor) -> float:
    """‖a - U S Vᵀ‖_F."""
    return tolerance.norm(a.double() - (u.double() * s.double().unsqueeze(-2)) @ vh.double())


def _bytes(a: Tensor) -> bytes:
    return a.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes() if a.numel() else b""


def same_bits(x: object, y: object) -> bool:
    """Equal to the bit, NaN included; a pair of arrays or of tuples of them."""
    if isinstance(x, (tuple, list)) and isinstance(y, (tuple, list)):
        return len(x) == len(y) and all(same_bits(i, j) for i, j in zip(x, y, strict=True))
    a, b = as_tensor(x), as_tensor(y)
    return a.dtype == b.dtype and a.shape == b.shape and _bytes(a) == _bytes(b)
