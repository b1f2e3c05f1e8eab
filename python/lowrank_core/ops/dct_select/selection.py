"""Selection of the atoms of a fixed orthogonal basis that keep most of a matrix, and the way back."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, TypeAlias

from lowrank_core import _core
from lowrank_core.ops.arrays import (
    Array,
    call_finite,
    check_array,
    check_int,
    check_same,
    dtype_name,
    empty,
    plain_ints,
)
from lowrank_core.ops.declare import Op, declare
from lowrank_core.ops.operators import call

BASES = ("dct2", "dct3", "identity", "hadamard")
Triplet: TypeAlias = tuple[Array, Array, Array]


class Selection(NamedTuple):
    """`indices` [..., r] int64 ascending, `coeffs` [..., m, r] (right) or [..., r, n] (left), `captured` [...] float64
    in [0, 1], `side` "left" or "right"."""

    indices: Array
    coeffs: Array
    captured: Array
    side: str


def dct_select(g: Array, rank: int, *, basis: str | Array = "dct2", side: str = "auto", norm_ord: int = 2) -> Selection:
    """The `rank` atoms of an orthogonal basis that keep most of `g`, and its coordinates in them.

    Args:
      g: [..., m, n], float32, float64, bfloat16 or float16 (NumPy: float32, float64), finite. Any strides.
      rank: r, 0 <= r <= the length of the transformed side.
      basis: whose columns Q are the atoms. "dct2": atom k is the cosine of frequency k, so the coordinates of a row are
        its DCT-II. "dct3": the columns of the DCT-II matrix. "identity": rows or columns of `g` themselves. "hadamard":
        Sylvester's matrix over sqrt n, for powers of two. Or an array [n, n] with orthonormal columns, which is not
        verified. Indices belong to their basis: keep its name beside them.
      side: "right": atoms along the rows, coordinates `g Q`. "left": along the columns, `Qᵀ g`. "auto": "right" if
        m >= n, else "left", the shorter side.
      norm_ord: 2 ranks atoms by the squares of their coordinates, for which the choice is the best of all; 1 by their
        magnitudes.

    Returns:
      Selection(indices, coeffs, captured, side). Ties go to the lower index. `coeffs` has `g`'s dtype. `captured`
      is the chosen coordinates' share of ‖g‖_F², a 0-d array for one matrix; 1 where `g` is zero. It is at least
      r / n under norm_ord=2.

    Raises:
      ValueError: an argument out of its range, or `g` not finite. TypeError: not a floating-point array.

    Numerics: tier D1 (same bits for any number of threads; docs/numerics.md); indices are those of any other level and
    device where no two scores are within rounding. Scores are summed in float64. Not differentiable.
    Source: Modoranu et al. 2025, arXiv 2505.17967, with energies for the ranking (their default is the 1-norm, which
    has no such guarantee), ties by index and ascending order.

    Example:
      >>> import numpy as np, lowrank_core as lc
      >>> g = np.cos(np.pi * 3 * (np.arange(8) + 0.5) / 8) * np.ones((10, 1))  # [10, 8], one cosine
      >>> indices, coeffs, captured, side = lc.dct_select(g, rank=1)
      >>> indices, coeffs.shape, round(float(captured), 6), side
      (array([3]), (10, 1), 1.0, 'right')
    """
    rank, norm_ord = plain_ints(rank, norm_ord)
    name, atoms, where = resolve("dct_select", g, basis, side)
    indices, coeffs, captured = call(_DCT_SELECT, g, rank, atoms, basis=name, side=where, norm_ord=norm_ord)
    return Selection(indices, coeffs, captured, where)


def select_unrecorded(g: Array, rank: int, *, basis: str, side: str, norm_ord: int) -> Triplet:
    """`dct_select` in a named basis, unchecked and without torch's dispatcher: indices, coefficients, captured."""
    out = outputs(g, rank, None, side=side)
    _select(out, g, rank, None, basis=basis, side=side, norm_ord=norm_ord)
    return out


# ---- contract ------------------------------------------------------------------------------------------------------


def resolve_basis(op: str, basis: str | Array) -> tuple[str, Array | None]:
    """The name that the operators take, and the atoms that go with "custom"."""
    if not isinstance(basis, str):
        check_array(op, "basis", basis)
        return "custom", basis
    if basis not in BASES:
        raise ValueError(f"{op}: `basis` must be one of {', '.join(BASES)} or an array, got {basis!r}")
    return basis, None


def resolve(op: str, g: Array, basis: str | Array, side: str) -> tuple[str, Array | None, str]:
    """And the side that "auto" means."""
    check_array(op, "g", g)
    name, atoms = resolve_basis(op, basis)
    if side not in ("auto", "left", "right"):
        raise ValueError(f"{op}: `side` must be 'auto', 'left' or 'right', got {side!r}")
    if side == "auto":
        side = "right" if g.shape[-2] >= g.shape[-1] else "left"
    return name, atoms, side


def check_basis(op: str, like: Array, n: int, atoms: Array | None, basis: str) -> None:
    if basis not in (*BASES, "custom") or (basis == "custom") != (atoms is not None):
        raise ValueError(f"{op}: `basis` must be one of {', '.join(BASES)}, or 'custom' with an array, got {basis!r}")
    if basis == "hadamard" and n & (n - 1) != 0:
        raise ValueError(f"{op}: `basis` 'hadamard' must have a power of two as length, got {n}; use 'dct2'")
    if atoms is None:
        return
    check_array(op, "basis", atoms)
    check_same(op, "basis", atoms, like)
    if tuple(atoms.shape) != (n, n):
        raise ValueError(f"{op}: `basis` must be [{n}, {n}], got shape {list(atoms.shape)}; its columns are the atoms")


def check_side(op: str, side: str) -> None:
    if side not in ("left", "right"):
        raise ValueError(f"{op}: `side` must be 'left' or 'right', got {side!r}")


def check_select(op: str, g: Array, rank: int, atoms: Array | None, *, basis: str, side: str, norm_ord: int) -> None:
    check_array(op, "g", g)
    check_side(op, side)
    n = g.shape[-2] if side == "left" else g.shape[-1]
    check_int(op, "rank", rank, 0, n, hint=f" for shape {list(g.shape[-2:])} and side {side!r}")
    check_int(op, "norm_ord", norm_ord, 1, 2)
    check_basis(op, g, n, atoms, basis)


# ---- allocation and computation ------------------------------------------------------------------------------------


def outputs(g: Array, rank: int, atoms: Array | None, *, side: str, **_: Any) -> Triplet:
    batch, (m, n) = tuple(g.shape[:-2]), g.shape[-2:]
    tail = (rank, n) if side == "left" else (m, rank)
    coeffs = empty(g, (*batch, *tail), dtype_name(g))
    return empty(g, (*batch, rank), "int64"), coeffs, empty(g, batch, "float64")


def _select(out: Triplet, g: Array, rank: int, atoms: Array | None, **options: Any) -> None:
    call_finite("dct_select", _core.dct_select, *out, g, arrays={"g": g, "basis": atoms}, atoms=atoms, **options)


SETTINGS = 'str basis="dct2", str side="right", int norm_ord=2'

_DCT_SELECT = Op(
    f"dct_select(Tensor g, int rank, Tensor? atoms=None, *, {SETTINGS}) -> (Tensor, Tensor, Tensor)",
    check=partial(check_select, "dct_select"),
    outputs=outputs,
    kernel=_select,
    leading=("g",),
)
declare("dct_select", _DCT_SELECT)
