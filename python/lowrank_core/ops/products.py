"""Products of matrices into memory that is there already."""

from __future__ import annotations

from lowrank_core import _core
from lowrank_core.ops.arrays import Array, call_named


def multiply_into(
    out: Array, left: Array, right: Array, *, alpha: float = 1.0, beta: float = 0.0, precision: str = "highest"
) -> None:
    """out <- alpha left right + beta out, for matrices or batches of any strides. Unchecked."""
    call_named("gemm", _core.gemm, out, left, right, arrays={}, alpha=alpha, beta=beta, precision=precision)


def takes_bfloat16() -> bool:
    """Whether float32 products of precision "medium" take bfloat16 operands here, where that is faster."""
    return _core.fast_bfloat16()
