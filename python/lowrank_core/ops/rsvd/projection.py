"""Into and out of a subspace: plain projection by one product."""

from __future__ import annotations

from functools import partial

from lowrank_core import _core
from lowrank_core.ops.arrays import (
    Array,
    call_named,
    check_array,
    check_same,
    dtype_name,
    empty,
    is_torch,
    resolve_precision,
    transpose,
)
from lowrank_core.ops.declare import Op, declare
from lowrank_core.ops.operators import call


def project(g: Array, basis: Array, *, side: str) -> Array:
    """Coordinates of `g` in a subspace: `basisᵀ g` (left) or `g basis` (right).

    Args:
      g: [..., m, n], float32, float64, bfloat16 or float16 (NumPy: float32, float64). Any strides.
      basis: [m, r] for `side="left"`, [n, r] for `side="right"`, or with the leading dimensions of `g`. A floating
        dtype; orthonormal columns make this an orthogonal projection, but nothing is assumed.
      side: "left" or "right".

    Returns:
      [..., r, n] (left) or [..., m, r] (right), in `g`'s dtype; accumulated in float32 (float64 for float64).

    Raises:
      ValueError: a shape, side or device that does not fit. TypeError: not a floating-point array.

    Numerics: tier D1 (same bits for any number of threads; docs/numerics.md). float32 products follow torch's matmul
    precision; differentiable any number of times in g and basis, in reverse and forward mode.
    Source: Zhao et al. 2024 (GaLore), arXiv 2403.03507, section 3.

    Example:
      >>> import numpy as np, lowrank_core as lc
      >>> g, basis = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), np.eye(3, 1)
      >>> lc.project(g, basis, side="left")
      array([[1., 2.]])
    """
    return call(_PROJECT, g, basis, side)


def project_back(r: Array, basis: Array, *, side: str) -> Array:
    """Back to full shape: `basis r` (left) or `r basisᵀ` (right).

    Args:
      r: [..., r, n] (left) or [..., m, r] (right), as returned by `project`.
      basis: [m, r] (left) or [n, r] (right), or with the leading dimensions of `r`.
      side: "left" or "right".

    Returns:
      [..., m, n] in `r`'s dtype; accumulated in float32 (float64 for float64).

    Raises, numerics, source: as `project`.

    Example:
      >>> import numpy as np, lowrank_core as lc
      >>> r, basis = np.array([[1.0, 2.0]]), np.eye(3, 1)
      >>> lc.project_back(r, basis, side="left")
      array([[1., 2.],
             [0., 0.],
             [0., 0.]])
    """
    return call(_PROJECT_BACK, r, basis, side)


def _check(op: str, x: Array, basis: Array, side: str) -> None:
    name, axis = ("g", -2) if op == "project" else ("r", -1)  # which of the basis' dimensions meets the one of `x`
    check_array(op, name, x)
    check_array(op, "basis", basis)
    check_same(op, "basis", basis, x)
    if side not in ("left", "right"):
        raise ValueError(f"{op}: `side` must be 'left' or 'right', got {side!r}")
    if basis.ndim != 2 and tuple(basis.shape[:-2]) != tuple(x.shape[:-2]):
        raise ValueError(
            f"{op}: `basis` must be a matrix or have the leading dimensions {list(x.shape[:-2])} of `{name}`, "
            f"got shape {list(basis.shape)}"
        )
    met = x.shape[-2] if side == "left" else x.shape[-1]
    if basis.shape[axis] != met:
        letters = (
            "[m, r]" if side == "left" else "[n, r]",
            "m, n and r of `g`" if axis == -2 else "r of `r`",
        )
        raise ValueError(
            f"{op}: `basis` must be {letters[0]} with the {letters[1]}, got shape {list(basis.shape)} "
            f"for `{name}` of shape {list(x.shape)} and side {side!r}"
        )


def _outputs(op: str, x: Array, basis: Array, side: str) -> Array:
    """Output of either direction: the met dimension gives way to the basis' other one."""
    new = basis.shape[-1] if op == "project" else basis.shape[-2]
    tail = (new, x.shape[-1]) if side == "left" else (x.shape[-2], new)
    return empty(x, (*x.shape[:-2], *tail), dtype_name(x))


def _expand(basis: Array, x: Array) -> Array:
    """The basis with the leading dimensions of `x`, without a copy."""
    if basis.ndim == x.ndim:
        return basis
    shape = (*x.shape[:-2], *basis.shape)
    if is_torch(basis):
        return basis.expand(shape)
    import numpy as np

    return np.broadcast_to(basis, shape)


def _project(out: Array, g: Array, basis: Array, side: str) -> None:
    _multiply("project", out, g, _expand(basis, g), side, {"g": g, "basis": basis})


def _project_back(out: Array, r: Array, basis: Array, side: str) -> None:
    _multiply("project_back", out, r, _expand(transpose(basis), r), side, {"r": r, "basis": basis})


def _multiply(op: str, out: Array, x: Array, basis: Array, side: str, named: dict[str, Array]) -> None:
    """out <- basisᵀ x (left) or x basis (right)."""
    a, b = (transpose(basis), x) if side == "left" else (x, basis)
    call_named(op, _core.gemm, out, a, b, arrays=named, precision=resolve_precision(op, None))


def project_unrecorded(g: Array, basis: Array, side: str) -> Array:
    """`project` without its checks and without torch's dispatcher."""
    out = _outputs("project", g, basis, side)
    _project(out, g, basis, side)
    return out


def project_back_unrecorded(r: Array, basis: Array, side: str) -> Array:
    """`project_back` without its checks and without torch's dispatcher."""
    out = _outputs("project_back", r, basis, side)
    _project_back(out, r, basis, side)
    return out


_PROJECT = Op(
    "project(Tensor g, Tensor basis, str side) -> Tensor",
    check=partial(_check, "project"),
    outputs=partial(_outputs, "project"),
    kernel=_project,
    leading=("g", "basis"),
)
_PROJECT_BACK = Op(
    "project_back(Tensor r, Tensor basis, str side) -> Tensor",
    check=partial(_check, "project_back"),
    outputs=partial(_outputs, "project_back"),
    kernel=_project_back,
    leading=("r", "basis"),
)
declare("rsvd", _PROJECT, _PROJECT_BACK)
