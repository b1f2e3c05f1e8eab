"""Gradients of the two factors of a product, each divided by the Gram matrix of the other factor. Unchecked."""

from __future__ import annotations

from lowrank_core import _core
from lowrank_core.ops.arrays import Array, call_named

Arrays = list[Array]


def scaled_gradients_list(
    new_a: Arrays, new_b: Arrays, grad_a: Arrays, grad_b: Arrays, a: Arrays, b: Arrays, dampings: list[float]
) -> None:
    """new_a <- (bᵀ b + damping I)⁻¹ grad_a and new_b <- grad_b (a aᵀ + damping I)⁻¹, for all pairs in one call.

    Args:
      new_a, grad_a, a: [r_i, n_i], any strides and floating dtypes; what is written shares no memory with the others.
      new_b, grad_b, b: [m_i, r_i]. dampings: > 0.

    Raises:
      ValueError: an array that shares memory, or shapes that do not fit; nothing was changed.

    Numerics: tier D1 (same bits for any number of threads; docs/numerics.md). The inverse is float64, by Cholesky's
    factorization of a float64 Gram matrix, and is rounded to float32 (not for float64); the product sums in float32 or
    float64 and rounds once. Where a damping leaves no pivot after rounding, the diagonal is raised by its own rounding.
    A factor with NaN, infinity or squares that overflow float64 gives NaN.
    """
    call_named("step", _core.scaled_gradients, new_a, new_b, grad_a, grad_b, a, b, dampings, arrays={})
