"""Products of matrices into memory that is there already."""

from __future__ import annotations

from contextlib import nullcontext

from lowrank_core import _core
from lowrank_core.ops.arrays import Array, call_named, factor_dtype, is_torch
from lowrank_core.ops.device import assign, in_dtype, on_device, torch_precision


def multiply_into(
    out: Array, left: Array, right: Array, *, alpha: float = 1.0, beta: float = 0.0, precision: str = "highest"
) -> None:
    """out <- alpha left right + beta out, for matrices or batches of any strides. Unchecked.

    On a GPU by the library of the arrays.
    """
    if on_device(out):
        work = factor_dtype(out)
        with torch_precision(precision) if is_torch(out) else nullcontext():
            product = in_dtype(left, work) @ in_dtype(right, work)
        product = product if alpha == 1.0 else alpha * product
        assign(out, product if beta == 0.0 else product + beta * in_dtype(out, work))
        return
    call_named("gemm", _core.gemm, out, left, right, arrays={}, alpha=alpha, beta=beta, precision=precision)


def orthogonalize_into(
    outs: list[Array],
    matrices: list[Array],
    *,
    coefficients: tuple[float, float, float],
    steps: int,
    eps: float,
) -> None:
    """outs <- matrices [..., m, n] by Newton and Schulz' iteration, each matrix of all of them by itself. Unchecked.

    Args:
      outs: float32 or float64, rows along memory. matrices: any floating dtypes and strides.
      coefficients, steps, eps: a, b, c, how often, and the least length to divide by.

    Operands of float32 products are rounded to bfloat16 where that is faster. Tier D1 (same bits for any number of
    threads; docs/numerics.md).
    """
    options = {"coefficients": tuple(coefficients), "steps": steps, "eps": eps}
    call_named("newton_schulz", _core.newton_schulz, outs, matrices, arrays={}, **options)


def takes_bfloat16() -> bool:
    """Whether float32 products of precision "medium" take bfloat16 operands here, where that is faster."""
    return _core.fast_bfloat16()
