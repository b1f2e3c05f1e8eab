"""Into and out of a subspace whose basis is kept as 4-bit codes."""

from __future__ import annotations

from typing import Any

from lowrank_core import _core
from lowrank_core.ops.arrays import Array, call_named, check_array, check_same, dtype_name, empty, is_torch
from lowrank_core.ops.declare import Op, declare
from lowrank_core.ops.int4_project.matrix import Int4Matrix, check_codes
from lowrank_core.ops.operators import torch_ops


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
    return _call("int4_project", q, g)


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
    return _call("int4_project_back", q, r)


def _call(op: str, q: Int4Matrix, x: Array) -> Array:
    _check(op, q, x)  # before torch's schema, which has its own words
    if is_torch(x):
        return getattr(torch_ops(), op)(q.packed, q.scales, q.offsets, q.shape, q.dim, q.group_size, q.scheme, x)
    return _run(op, q, x)


def _check(op: str, q: Int4Matrix, x: Array) -> None:
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


def _allocate(op: str, q: Int4Matrix, x: Array) -> Array:
    _check(op, q, x)
    rows = q.shape[1] if op == "int4_project" else q.shape[0]
    return empty(x, (*x.shape[:-2], rows, x.shape[-1]), dtype_name(x))


def _run(op: str, q: Int4Matrix, x: Array) -> Array:
    out = _allocate(op, q, x)
    name = "g" if op == "int4_project" else "r"
    call_named(
        op,
        _core.int4_project,
        out,
        q.packed,
        q.scales,
        q.offsets,
        x,
        arrays={"q.packed": q.packed, "q.scales": q.scales, "q.offsets": q.offsets, name: x},
        rows=q.shape[0],
        cols=q.shape[1],
        dim=q.dim,
        group_size=q.group_size,
        scheme=q.scheme,
        back=op == "int4_project_back",
    )
    return out


def _matrix(
    packed: Array,
    scales: Array,
    offsets: Array | None,
    shape: tuple[int, ...],
    dim: int,
    group_size: int,
    scheme: str,
) -> Int4Matrix:
    return Int4Matrix(packed, scales, offsets, tuple(shape), dim, group_size, scheme)


def _project(*arguments: Any) -> Array:
    return _run("int4_project", _matrix(*arguments[:-1]), arguments[-1])


def _project_back(*arguments: Any) -> Array:
    return _run("int4_project_back", _matrix(*arguments[:-1]), arguments[-1])


def _fake_project(*arguments: Any) -> Array:
    return _allocate("int4_project", _matrix(*arguments[:-1]), arguments[-1])


def _fake_project_back(*arguments: Any) -> Array:
    return _allocate("int4_project_back", _matrix(*arguments[:-1]), arguments[-1])


_CODES = "Tensor packed, Tensor scales, Tensor? offsets, SymInt[] shape, int dim, int group_size, str scheme"

declare(
    "int4_project",
    Op(
        f"int4_project({_CODES}, Tensor g) -> Tensor",
        run=_project,
        fake=_fake_project,
        leading=("g",),
    ),
    Op(
        f"int4_project_back({_CODES}, Tensor r) -> Tensor",
        run=_project_back,
        fake=_fake_project_back,
        leading=("r",),
    ),
)
