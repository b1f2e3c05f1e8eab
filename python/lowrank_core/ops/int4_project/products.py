"""Into and out of a subspace whose basis is kept as 4-bit codes."""

from __future__ import annotations

from functools import partial
from typing import Any

from lowrank_core import _core
from lowrank_core.ops.arrays import Array, call_named, check_array, check_same, dtype_name, empty, transpose
from lowrank_core.ops.declare import Op, declare
from lowrank_core.ops.device import on_device
from lowrank_core.ops.int4_project.codes import dequantize_list
from lowrank_core.ops.int4_project.matrix import Int4Matrix, check_codes
from lowrank_core.ops.operators import call
from lowrank_core.ops.products import multiply_into


def int4_project(q: Int4Matrix, g: Array) -> Array:
    """Coordinates of `g` in a subspace, `Pᵀ g`, straight from the codes of the basis P.

    Args:
      q: of a basis P [m, r], any scheme, grouped along either dimension (`dim=0` is the fast layout).
      g: [..., m, n], float32, float64, bfloat16 or float16 (NumPy: float32, float64). Any strides.

    Returns:
      [..., r, n] in `g`'s dtype, accumulated in float32 (float64 for float64) with P's elements as float32, whatever
      the matmul precision.

    Raises:
      ValueError: a shape or device that does not fit. TypeError: no Int4Matrix, or no floating-point array.

    Numerics: tier D1 (same bits for any number of threads; docs/numerics.md); the error of a product with the decoded
    P. Differentiable any number of times in `g`, in reverse and forward mode; not in scales and offsets.
    Source: Q-GaLore (arXiv 2407.08296), section 3; deviation: P is never dense, codes are decoded panel by panel.

    Example:
      >>> import numpy as np, lowrank_core as lc
      >>> packed = lc.quantize_int4(np.eye(64, 4), dim=0)
      >>> g = np.ones((64, 10))
      >>> lc.int4_project(packed, g).shape
      (4, 10)
    """
    return _call(_PROJECT, q, g)


def int4_project_back(q: Int4Matrix, r: Array) -> Array:
    """Back to full shape, `P r`, straight from the codes of the basis P.

    Args:
      q: of a basis P [m, r].
      r: [..., r, n], as returned by `int4_project`.

    Returns:
      [..., m, n] in `r`'s dtype, accumulated as in `int4_project`.

    Raises, numerics, source: as `int4_project`.

    Example:
      >>> import numpy as np, lowrank_core as lc
      >>> packed = lc.quantize_int4(np.eye(64, 4), dim=0)
      >>> r = np.ones((4, 10))
      >>> lc.int4_project_back(packed, r).shape
      (64, 10)
    """
    return _call(_PROJECT_BACK, q, r)


def _call(op: Op, q: Int4Matrix, x: Array) -> Array:
    _check_product(op.name, q, x)  # before its parts are taken
    return call(op, q.packed, q.scales, q.offsets, q.shape, q.dim, q.group_size, q.scheme, x)


def _check(op: str, *arguments: Any) -> None:
    _check_product(op, *_parted(*arguments))


def _parted(*arguments: Any) -> tuple[Int4Matrix, Array]:
    """What an operator is given: the parts of `q`, then the dense matrix."""
    *arrays, shape, dim, group_size, scheme, x = arguments
    return Int4Matrix(arrays[0], arrays[1], arrays[2], tuple(shape), dim, group_size, scheme), x


def _check_product(op: str, q: Int4Matrix, x: Array) -> None:
    name, letters, met = ("g", "[..., m, n]", 0) if op == "int4_project" else ("r", "[..., r, n]", 1)
    check_codes(op, q)
    if len(q.shape) != 2:
        raise ValueError(f"{op}: `q` must be of a matrix [m, r], got shape {list(q.shape)}")
    check_array(op, name, x)
    check_same(op, name, x, q.packed)
    if x.shape[-2] != q.shape[met]:
        raise ValueError(
            f"{op}: `{name}` must be {letters} for the basis {list(q.shape)} of `q`, got shape {list(x.shape)}"
        )


def _outputs(op: str, *arguments: Any) -> Array:
    q, x = _parted(*arguments)
    rows = q.shape[1] if op == "int4_project" else q.shape[0]
    return empty(x, (*x.shape[:-2], rows, x.shape[-1]), dtype_name(x))


def _multiply(op: str, out: Array, *arguments: Any) -> None:
    q, x = _parted(*arguments)
    back = op == "int4_project_back"
    if on_device(x):  # the basis is small: decoded, it goes to the product of the arrays' library
        basis = empty(x, q.shape, "float32")
        dequantize_list([q], [basis])
        return multiply_into(out, basis if back else transpose(basis), x)
    call_named(
        op,
        _core.int4_project,
        out,
        q.packed,
        q.scales,
        q.offsets,
        x,
        arrays={"q.packed": q.packed, "q.scales": q.scales, "q.offsets": q.offsets, "r" if back else "g": x},
        rows=q.shape[0],
        cols=q.shape[1],
        dim=q.dim,
        group_size=q.group_size,
        scheme=q.scheme,
        back=back,
    )


_CODES = "Tensor packed, Tensor scales, Tensor? offsets, SymInt[] shape, int dim, int group_size, str scheme"

_PROJECT, _PROJECT_BACK = (
    Op(
        f"{name}({_CODES}, Tensor {dense}) -> Tensor",
        check=partial(_check, name),
        outputs=partial(_outputs, name),
        kernel=partial(_multiply, name),
        leading=(dense,),
    )
    for name, dense in (("int4_project", "g"), ("int4_project_back", "r"))
)
declare("int4_project", _PROJECT, _PROJECT_BACK)
