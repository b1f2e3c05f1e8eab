"""Products of chains of matrices in the order that costs least."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lowrank_core import _core
from lowrank_core.ops.arrays import Array, call_named, check_array, check_same, dtype_name, empty, is_torch
from lowrank_core.ops.declare import Op, declare
from lowrank_core.ops.operators import call, dispatches_nothing

_OP = "chain_matmul"
_NUMPY_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def chain_matmul(matrices: Sequence[Array]) -> Array:
    """Product of a chain of matrices, multiplied in the cheapest order.

    Args:
      matrices: at least one; each [..., m_i, m_(i+1)], float32, float64, bfloat16 or float16 (NumPy: float32, float64),
        all of one dtype. Any strides. Leading dimensions broadcast; a plain matrix [m_i, m_(i+1)] stands for all.

    Returns:
      [..., m_0, m_n] in the dtype of the factors. Products in between are held in float32 (float64 for float64), and
      rounded once. Neighbouring plain matrices of a batched chain are multiplied once, not once for each member.

    Raises:
      ValueError: no factor, shapes that do not chain or broadcast. TypeError: not floating-point arrays of one dtype.

    Numerics: tier D1 (same bits for any number of threads; docs/numerics.md); |error| at most the sum over the products
    of gamma(k + 2) times the product of magnitudes. Differentiable any number of times, in reverse and forward mode; a
    derivative is a chain again, in its own cheapest order.
    Source: Cormen, Leiserson, Rivest, Stein, 4th ed., section 14.2; the cost counts numbers moved as well as
    multiply-adds, since thin factors are bound by the former.

    Example:
      >>> import numpy as np, lowrank_core as lc
      >>> x, a, b = np.ones((100, 60)), np.ones((60, 2)), np.ones((2, 70))
      >>> y = lc.chain_matmul([x, a, b])  # (x a) b, which is cheaper than x (a b)
      >>> y.shape, float(y[0, 0])
      ((100, 70), 120.0)
    """
    if not isinstance(matrices, Iterable):
        raise TypeError(f"{_OP}: `matrices` must be a list of matrices, got {type(matrices).__name__}")
    given = list(matrices)
    product = _direct(given)
    return call(_CHAIN_MATMUL, given) if product is None else product


def _direct(matrices: list[Array]) -> Array | None:
    """The product of matrices, not batches, without torch's dispatcher: what small chains spend their time in.

    The compiled function checks dtypes and shapes as well. None where there is something to refuse, which the operator
    has the words for, and where the dispatcher has something to do.
    """
    if not matrices:
        return None
    first, last = matrices[0], matrices[-1]
    if is_torch(first):
        if not dispatches_nothing(matrices) or first.ndim != 2 or last.ndim != 2 or not first.is_floating_point():
            return None
        out = first.new_empty((first.shape[0], last.shape[1]))
    else:
        if any(type(m) is not np.ndarray or m.ndim != 2 for m in matrices) or first.dtype not in _NUMPY_DTYPES:
            return None
        out = np.empty((first.shape[0], last.shape[1]), first.dtype)
    try:
        _core.chain_matmul(out, matrices)
    except ValueError:
        return None
    return out


def _check(matrices: Sequence[Array]) -> None:
    if not matrices:
        raise ValueError(f"{_OP}: `matrices` must hold at least one matrix, got none")
    for i, matrix in enumerate(matrices):
        check_array(_OP, f"matrices[{i}]", matrix)
        check_same(_OP, f"matrices[{i}]", matrix, matrices[0])
        if dtype_name(matrix) != dtype_name(matrices[0]):
            raise TypeError(
                f"{_OP}: `matrices[{i}]` must be {dtype_name(matrices[0])} as the first, got {dtype_name(matrix)}"
            )
        if i and matrices[i - 1].shape[-1] != matrix.shape[-2]:
            raise ValueError(
                f"{_OP}: `matrices[{i}]` must have {matrices[i - 1].shape[-1]} rows, as many as the matrix before it "
                f"has columns, got shape {list(matrix.shape)}"
            )
    leading(_OP, "matrices", [tuple(matrix.shape[:-2]) for matrix in matrices])


def finite_number(op: str, argument: str, value: Any) -> float:
    """`value` as a float; refuses what is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{op}: `{argument}` must be a number, got {value!r}") from None
    if not -math.inf < number < math.inf:
        raise ValueError(f"{op}: `{argument}` must be a finite number, got {value!r}")
    return number


def leading(op: str, argument: str, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The leading dimensions that several broadcast to; refuses those that do not."""
    longest = max(len(shape) for shape in shapes)
    found: list[int] = []
    for column in zip(*((1,) * (longest - len(shape)) + tuple(shape) for shape in shapes), strict=True):
        wider = [n for n in column if n != 1]
        size = wider[0] if wider else 1
        if any(n not in (1, size) for n in column):
            raise ValueError(
                f"{op}: `{argument}` must have leading dimensions that broadcast, got {[list(s) for s in shapes]}"
            )
        found.append(size)
    return tuple(found)


def expand(a: Array, shape: tuple[int, ...]) -> Array:
    """`a` broadcast to a shape, as a view."""
    return a.expand(shape) if is_torch(a) else np.broadcast_to(a, shape)


def _product(matrices: Sequence[Array]) -> Array:
    lead = leading(_OP, "matrices", [tuple(matrix.shape[:-2]) for matrix in matrices])
    return empty(matrices[0], (*lead, matrices[0].shape[-2], matrices[-1].shape[-1]), dtype_name(matrices[0]))


def _multiply(out: Array, matrices: Sequence[Array]) -> None:
    lead = tuple(out.shape[:-2])
    named = {f"matrices[{i}]": m for i, m in enumerate(matrices)}
    factors = [m if m.ndim == 2 else expand(m, (*lead, *m.shape[-2:])) for m in matrices]
    call_named(_OP, _core.chain_matmul, out, factors, arrays=named)


_CHAIN_MATMUL = Op("chain_matmul(Tensor[] matrices) -> Tensor", check=_check, outputs=_product, kernel=_multiply)
declare("chain_lr", _CHAIN_MATMUL)
