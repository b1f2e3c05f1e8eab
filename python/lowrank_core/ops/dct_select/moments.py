"""Transport of moments between two selections from one basis."""

from __future__ import annotations

from lowrank_core import _core
from lowrank_core.ops.arrays import Array, call_named, check_array, check_same, dtype_name, empty
from lowrank_core.ops.dct_select.back import check_indices, contiguous
from lowrank_core.ops.declare import Op, declare
from lowrank_core.ops.operators import call

_OP = "rotate_moments"


def rotate_moments(m: Array, v: Array, old_indices: Array, new_indices: Array, *, side: str) -> tuple[Array, Array]:
    """First and second moments from one selection to another: the atoms in both keep theirs, new ones start at zero.

    `Q_oldᵀ Q_new` of two selections from one orthogonal basis has ones where the indices match and zeros elsewhere, so
    rotating is copying: no rounding, and `v` keeps its sign.

    Args:
      m: [..., k, r] (right) or [..., r, k] (left), float32, float64, bfloat16 or float16 (NumPy: float32, float64).
      v: like `m` in shape, any of these dtypes.
      old_indices: [..., r] int64, ascending without repeats: the atoms of `m` and `v`.
      new_indices: [..., r'] int64, ascending without repeats; r' may differ from r.
      side: "left" or "right", as returned by `dct_select`.

    Returns:
      (m, v), new arrays [..., k, r'] (right) or [..., r', k] (left), each in its dtype.

    Raises:
      ValueError: shapes, side or order that do not fit. TypeError: not a floating-point array, or indices that are not
      int64.

    Numerics: tier D0 (same bits on every device and level; docs/numerics.md). Differentiable in forward mode alone.
    Source: Modoranu et al. 2025, arXiv 2505.17967, whose dense r x r product this equals. A column that enters with
    zero moments while the bias correction is near 1 has a first step of (1 - beta1) / sqrt(1 - beta2).

    Example:
      >>> import numpy as np, lowrank_core as lc
      >>> m, v = np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]])
      >>> lc.rotate_moments(m, v, np.array([0, 5]), np.array([5, 7]), side="right")
      (array([[2., 0.]]), array([[4., 0.]]))
    """
    rotated_m, rotated_v = call(_ROTATE, m, v, old_indices, new_indices, side)
    return rotated_m, rotated_v


def rotate_unrecorded(m: Array, v: Array, old_indices: Array, new_indices: Array, side: str) -> tuple[Array, Array]:
    """`rotate_moments`, unchecked and without torch's dispatcher."""
    out = _outputs(m, v, old_indices, new_indices, side)
    _rotate(out, m, v, old_indices, new_indices, side)
    return out


def _check(m: Array, v: Array, old_indices: Array, new_indices: Array, side: str) -> None:
    check_array(_OP, "m", m)
    check_array(_OP, "v", v)
    check_same(_OP, "v", v, m)
    if side not in ("left", "right"):
        raise ValueError(f"{_OP}: `side` must be 'left' or 'right', got {side!r}")
    if tuple(v.shape) != tuple(m.shape):
        raise ValueError(f"{_OP}: `v` must have the shape {list(m.shape)} of `m`, got {list(v.shape)}")
    batch = tuple(m.shape[:-2])
    check_indices(_OP, "old_indices", old_indices, m, (*batch, m.shape[-2] if side == "left" else m.shape[-1]))
    count = new_indices.shape[-1] if getattr(new_indices, "ndim", 0) else 0
    check_indices(_OP, "new_indices", new_indices, m, (*batch, count))


def _outputs(m: Array, v: Array, old_indices: Array, new_indices: Array, side: str) -> tuple[Array, Array]:
    *batch, rows, cols = m.shape
    rank = new_indices.shape[-1]
    shape = (*batch, rank, cols) if side == "left" else (*batch, rows, rank)
    return empty(m, shape, dtype_name(m)), empty(v, shape, dtype_name(v))


def _rotate(out: tuple[Array, Array], m: Array, v: Array, old_indices: Array, new_indices: Array, side: str) -> None:
    named = {"m": m, "v": v, "old_indices": old_indices, "new_indices": new_indices}
    indices = (contiguous(old_indices), contiguous(new_indices))
    call_named(_OP, _core.rotate_moments, *out, m, v, *indices, arrays=named, side=side)


_ROTATE = Op(
    "rotate_moments(Tensor m, Tensor v, Tensor old_indices, Tensor new_indices, str side) -> (Tensor, Tensor)",
    check=_check,
    outputs=_outputs,
    kernel=_rotate,
    leading=("m", "v", "old_indices", "new_indices"),
)
declare("dct_select", _ROTATE)
