"""Selection with error feedback: what is not chosen is kept, in coordinates, for the next time."""

from __future__ import annotations

from typing import Any

from lowrank_core import _core
from lowrank_core.ops.arrays import (
    Array,
    call_finite,
    check_array,
    check_in_place,
    check_same,
    is_torch,
    plain_ints,
)
from lowrank_core.ops.dct_select.selection import SETTINGS, Selection, Triplet, check_select, outputs, resolve
from lowrank_core.ops.declare import Op, declare
from lowrank_core.ops.operators import call

_OP = "dct_select_feedback_"


def dct_select_feedback_(
    residual: Array,
    g: Array,
    rank: int,
    *,
    keep: float = 0.0,
    basis: str | Array = "dct2",
    side: str = "auto",
    norm_ord: int = 2,
) -> Selection:
    """`dct_select` of `g` plus what earlier selections left, with the rest kept in coordinates.

    With S = coordinates of `g` + `residual`, selects from S and overwrites `residual` by S with the chosen atoms
    multiplied by `keep`. That is error feedback: 0 keeps exactly what was not chosen, a momentum mu keeps mu
    of what was.

    Args:
      residual: like `g`, in coordinates of the whole basis: zeros at first. Overwritten. Any floating dtype; narrower
        than `g`, each sum is rounded to it before the coordinates are read. float64: magnitudes below 1e150.
      keep: 0 <= keep <= 1, what becomes of the chosen coordinates.
      g, rank, basis, side, norm_ord: as `dct_select`.

    Returns:
      As `dct_select`, of S. Where it raises, `residual` is as it was.

    Raises, numerics, source: as `dct_select`; RuntimeError where torch would record a derivative. Feedback in
    coordinates equals feedback in the weights' space, because the basis is orthogonal.

    Example:
      >>> import numpy as np, lowrank_core as lc
      >>> g, residual = np.diag([2.0, 1.0]), np.zeros((2, 2))
      >>> lc.dct_select_feedback_(residual, g, rank=1, basis="identity").indices
      array([0])
      >>> residual  # what was not chosen, for the next time
      array([[0., 0.],
             [0., 1.]])
    """
    rank, norm_ord = plain_ints(rank, norm_ord)
    name, atoms, where = resolve(_OP, g, basis, side)
    if is_torch(g):
        check_in_place(_OP, "residual", residual)
    indices, coeffs, captured = call(
        _FEEDBACK, residual, g, rank, atoms, keep=keep, basis=name, side=where, norm_ord=norm_ord
    )
    return Selection(indices, coeffs, captured, where)


def _check(residual: Array, g: Array, rank: int, atoms: Array | None, *, keep: float, **options: Any) -> None:
    check_select(_OP, g, rank, atoms, **options)
    check_array(_OP, "residual", residual)
    check_same(_OP, "residual", residual, g)
    if tuple(residual.shape) != tuple(g.shape):
        raise ValueError(
            f"{_OP}: `residual` must have the shape {list(g.shape)} of `g`, got {list(residual.shape)}; "
            "start with zeros"
        )
    if not 0.0 <= keep <= 1.0:
        raise ValueError(f"{_OP}: `keep` must be between 0 and 1, got {keep}")


def _outputs(residual: Array, *args: Any, keep: float, **options: Any) -> Triplet:
    return outputs(*args, **options)


def _select(out: Triplet, residual: Array, g: Array, rank: int, atoms: Array | None, **options: Any) -> None:
    arrays = {"g": g, "residual": residual, "basis": atoms}
    call_finite(_OP, _core.dct_select_feedback, *out, residual, g, arrays=arrays, atoms=atoms, **options)


_FEEDBACK = Op(
    "dct_select_feedback_(Tensor(a!) residual, Tensor g, int rank, Tensor? atoms=None, *, float keep=0.0, "
    f"{SETTINGS}) -> (Tensor, Tensor, Tensor)",
    check=_check,
    outputs=_outputs,
    kernel=_select,
)
declare("dct_select", _FEEDBACK)
