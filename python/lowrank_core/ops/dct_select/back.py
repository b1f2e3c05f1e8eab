"""From chosen coordinates back to full shape."""

from __future__ import annotations

from typing import Any

from lowrank_core import _core
from lowrank_core.ops.arrays import (
    Array,
    call_named,
    check_array,
    check_dense,
    check_int,
    check_same,
    dtype_name,
    empty,
    is_torch,
    plain_int,
)
from lowrank_core.ops.dct_select.selection import check_basis, check_side, resolve_basis
from lowrank_core.ops.declare import Op, declare
from lowrank_core.ops.operators import call

_OP = "dct_project_back"


def dct_project_back(coeffs: Array, indices: Array, n: int, *, side: str, basis: str | Array = "dct2") -> Array:
    """Back to full shape from chosen coordinates: `coeffs Q_Iᵀ` (right) or `Q_I coeffs` (left).

    Args:
      coeffs: [..., m, r] (right) or [..., r, m] (left), as returned by `dct_select`.
      indices: [..., r] int64, ascending without repeats, 0 <= index < n.
      n: length of the transformed side.
      side: "left" or "right", as returned by `dct_select`.
      basis: as for `dct_select`.

    Returns:
      [..., m, n] (right) or [..., n, m] (left) in `coeffs`' dtype; computed in float32 (float64 for float64).

    Raises:
      ValueError: a shape, a side or an index that does not fit. TypeError: not a floating-point array, or indices that
      are not int64.

    Numerics: tier D1 (same bits for any number of threads; docs/numerics.md). Differentiable in forward mode alone;
    `idct` of a scattered spectrum in both.
    Source: as `dct_select`.

    Example:
      >>> import numpy as np, lowrank_core as lc
      >>> g = np.cos(np.pi * 3 * (np.arange(8) + 0.5) / 8) * np.ones((10, 1))  # [10, 8], one cosine
      >>> chosen = lc.dct_select(g, rank=1)
      >>> back = lc.dct_project_back(chosen.coeffs, chosen.indices, 8, side=chosen.side)
      >>> assert np.allclose(back, g)
    """
    n = plain_int(n)
    name, atoms = resolve_basis(_OP, basis)
    return call(_PROJECT_BACK, coeffs, indices, n, atoms, side=side, basis=name)


def project_back_unrecorded(coeffs: Array, indices: Array, n: int, *, side: str, basis: str) -> Array:
    """`dct_project_back` in a named basis, unchecked and without torch's dispatcher."""
    out = _outputs(coeffs, indices, n, side=side)
    _project_back(out, coeffs, indices, n, None, side=side, basis=basis)
    return out


def check_indices(op: str, argument: str, indices: Array, like: Array, shape: tuple[int, ...]) -> None:
    """Refuses what is no int64 array of this shape beside `like`."""
    if not hasattr(indices, "dtype") or dtype_name(indices) != "int64":
        kind = dtype_name(indices) if hasattr(indices, "dtype") else type(indices).__name__
        raise TypeError(f"{op}: `{argument}` must be an int64 array, got {kind}; pass what dct_select returned")
    check_dense(op, argument, indices)
    check_same(op, argument, indices, like)
    if tuple(indices.shape) != shape:
        raise ValueError(f"{op}: `{argument}` must be {list(shape)}, got shape {list(indices.shape)}")


def _check(coeffs: Array, indices: Array, n: int, atoms: Array | None, *, side: str, basis: str) -> None:
    check_array(_OP, "coeffs", coeffs)
    check_side(_OP, side)
    rank = coeffs.shape[-2] if side == "left" else coeffs.shape[-1]
    check_int(_OP, "n", n, 0)
    if rank > n:
        raise ValueError(f"{_OP}: `n` must be >= the {rank} coordinates of `coeffs`, got {n}")
    check_indices(_OP, "indices", indices, coeffs, (*coeffs.shape[:-2], rank))
    check_basis(_OP, coeffs, n, atoms, basis)


def _outputs(coeffs: Array, indices: Array, n: int, *_: Any, side: str, **__: Any) -> Array:
    *batch, m, r = coeffs.shape
    return empty(coeffs, (*batch, n, r) if side == "left" else (*batch, m, n), dtype_name(coeffs))


def _project_back(out: Array, coeffs: Array, indices: Array, n: int, atoms: Array | None, **options: Any) -> None:
    named = {"coeffs": coeffs, "indices": indices, "basis": atoms}
    options["atoms"] = atoms
    call_named(_OP, _core.dct_project_back, out, coeffs, contiguous(indices), arrays=named, **options)


def contiguous(indices: Array) -> Array:
    """Indices one after another, as the kernels read them."""
    if is_torch(indices):
        return indices.contiguous()
    return indices if indices.flags.c_contiguous else indices.copy()


_PROJECT_BACK = Op(
    'dct_project_back(Tensor coeffs, Tensor indices, int n, Tensor? atoms=None, *, str side="right", '
    'str basis="dct2") -> Tensor',
    check=_check,
    outputs=_outputs,
    kernel=_project_back,
    leading=("coeffs", "indices"),
)
declare("dct_select", _PROJECT_BACK)
