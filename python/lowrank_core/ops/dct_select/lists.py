"""Selections of a list of matrices and their way back, small ones side by side in one call. Unchecked."""

from __future__ import annotations

from lowrank_core import _core
from lowrank_core.ops.arrays import Array, call_finite, call_named
from lowrank_core.ops.dct_select.selection import Triplet, outputs


def select_feedback_list_(
    residuals: list[Array],
    matrices: list[Array],
    ranks: list[int],
    sides: list[str],
    *,
    keep: float,
    basis: str,
    norm_ord: int,
) -> list[Triplet]:
    """`dct_select_feedback_` of each of `matrices` [m, n], in a named basis, with the bits that it has alone.

    The caller knows that `matrices` are finite. Where residuals are not, or do not stay so, the error comes once they
    are written, but for float64.
    """
    out = [outputs(g, rank, None, side=side) for g, rank, side in zip(matrices, ranks, sides, strict=True)]
    lists = [list(part) for part in zip(*out, strict=True)]
    lists += [residuals, matrices, [side == "left" for side in sides]]
    named = {f"residual[{i}]": residual for i, residual in enumerate(residuals)}
    options = {"keep": keep, "basis": basis, "norm_ord": norm_ord, "finite": True}
    call_finite("dct_select_feedback_", _core.dct_select_feedback_list, *lists, arrays=named, **options)
    return out


def project_back_list(
    outs: list[Array], coeffs: list[Array], indices: list[Array], sides: list[str], *, basis: str
) -> None:
    """outs [m, n] <- `dct_project_back` of each of `coeffs`, in a named basis, with the bits that it has alone."""
    left = [side == "left" for side in sides]
    call_named("dct_project_back", _core.dct_project_back_list, outs, coeffs, indices, left, arrays={}, basis=basis)
