"""Coordinates in fixed orthogonal bases, the choice of atoms and the way back: by kernels, or by torch operations on
other devices.

An atom is a column of the basis Q [n, n]; n is the side that is transformed: the rows' number for "left", where the
coordinates of G are Q^T G, and the columns' for "right", where they are G Q. Nothing here waits for a device.
Determinism by kernels: D1 (same bits for any number of threads; docs/numerics.md); without them: D2 (within a stated
bound; docs/numerics.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from math import pi
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowrank_core.memory.storage import AUTO_BASES, AUTO_BASIS, AUTO_KEY
from lowrank_core.ops.dct_select.back import project_back_unrecorded
from lowrank_core.ops.dct_select.lists import project_back_list, select_feedback_list_
from lowrank_core.ops.dct_select.selection import BASES, select_unrecorded
from lowrank_core.ops.dct_select.transform import coordinates_unrecorded
from lowrank_core.optim.devices import has_kernels

__all__ = ["BASES", "Chosen", "basis_in", "choose", "choose_fed_back_", "columns", "coordinates", "lift", "lift_into"]


class Chosen(NamedTuple):
    """Atoms that were chosen for a matrix."""

    indices: Tensor  # [r] int64, ascending
    low: Tensor  # the matrix in them, [m, r] (right) or [r, n] (left), in its dtype
    captured: Tensor  # 0-d: their share of its squared norm; 1 for zeros


def basis_in(state: Mapping[str, Any], named: str) -> str:
    """The basis called `named`; for `AUTO_BASIS` that of `state`, which is the identity before there is a subspace."""
    return AUTO_BASES[state[AUTO_KEY]] if named == AUTO_BASIS else named


def coordinates(matrix: Tensor, basis: str, side: str) -> Tensor:
    """`matrix` in the whole basis, [m, n] as it is, in its dtype; itself where the basis is the identity."""
    if basis == "identity":
        return matrix
    if has_kernels(matrix.device):
        spectrum: Tensor = coordinates_unrecorded(matrix, basis, side)
        return spectrum
    atoms = columns(basis, matrix.shape[_axis(side)], matrix.dtype, matrix.device)
    return atoms.mT @ matrix if side == "left" else matrix @ atoms


def choose(matrix: Tensor, rank: int, *, basis: str, side: str, norm_ord: int) -> Chosen:
    """The `rank` atoms with the largest coordinates, by squares (`norm_ord` 2) or by magnitudes (1)."""
    if has_kernels(matrix.device):
        return Chosen(*select_unrecorded(matrix, rank, basis=basis, side=side, norm_ord=norm_ord))
    spectrum, axis = coordinates(matrix, basis, side), _axis(side)
    squares = spectrum.double().square().sum(dim=-1 - axis)
    scores = squares if norm_ord == 2 else spectrum.double().abs().sum(dim=-1 - axis)
    # A stable sort gives ties to the lower index, which torch.topk does not promise.
    indices = scores.sort(descending=True, stable=True).indices[:rank].sort().values
    total = squares.sum()
    captured = torch.where(total > 0, squares[indices].sum() / total, 1.0).clamp(max=1)
    return Chosen(indices, spectrum.index_select(axis, indices), captured)


def choose_fed_back_(
    feedbacks: list[Tensor],
    matrices: list[Tensor],
    ranks: list[int],
    sides: list[str],
    bases: list[str],
    *,
    keep: float,
    norm_ord: int,
) -> list[Chosen]:
    """`choose` for the sum of each of `matrices` and its feedback, which is in coordinates and becomes that sum, `keep`
    times where it was chosen. All of one basis in one call and one pass, on the CPU alone."""
    chosen: dict[int, Chosen] = {}
    for basis, places, lists in _by_basis(bases, feedbacks, matrices, ranks, sides):
        found = select_feedback_list_(*lists, keep=keep, basis=basis, norm_ord=norm_ord)
        chosen |= zip(places, (Chosen(*one) for one in found), strict=True)
    return [chosen[place] for place in range(len(bases))]


def lift(low: Tensor, indices: Tensor, length: int, *, basis: str, side: str) -> Tensor:
    """The matrix that has the coordinates `low` in the atoms `indices`, of a side of `length`, and no others."""
    if has_kernels(low.device):
        lifted: Tensor = project_back_unrecorded(low, indices, length, side=side, basis=basis)
        return lifted
    if basis == "identity":
        shape = (length, low.shape[1]) if side == "left" else (low.shape[0], length)
        return low.new_zeros(shape).index_copy_(_axis(side), indices, low)
    atoms = columns(basis, length, low.dtype, low.device).index_select(1, indices)
    return atoms @ low if side == "left" else low @ atoms.mT


def lift_into(
    outs: Sequence[Tensor],
    lows: Sequence[Tensor],
    indices: Sequence[Tensor],
    sides: Sequence[str],
    bases: Sequence[str],
) -> None:
    """outs <- `lift` of each, all of one basis in one call. On the CPU alone."""
    for basis, _, lists in _by_basis(bases, outs, lows, indices, sides):
        project_back_list(*lists, basis=basis)


@lru_cache(maxsize=16)
def columns(basis: str, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Q [length, length] of a named basis. Angles are reduced in integers, so that every entry is right to a rounding.

    Source: Makhoul 1980 (the DCT-II and its inverse, the DCT-III), Sylvester's construction for "hadamard".
    """
    if basis == "hadamard":
        matrix = torch.ones(1, 1, dtype=torch.float64, device="cpu")
        while len(matrix) < length:
            matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        matrix = matrix / length**0.5
    elif basis == "identity":
        matrix = torch.eye(length, dtype=torch.float64, device="cpu")
    else:
        k = torch.arange(length, device="cpu")
        phase = (k[:, None] * (2 * k[None, :] + 1)) % (4 * length)
        rows = torch.cos(phase.double() * (pi / (2 * length))) * (2 / length) ** 0.5
        rows[0] = (1 / length) ** 0.5
        matrix = rows.mT if basis == "dct2" else rows  # the atoms of "dct2" are the cosines, the rows of DCT-II
    return matrix.to(device=device, dtype=dtype)


def _by_basis(bases: Sequence[str], *lists: Sequence[Any]) -> Iterator[tuple[str, list[int], list[list[Any]]]]:
    """Each of `bases`, the places that have it, and what stands there in each of `lists`."""
    for basis in dict.fromkeys(bases):
        places = [place for place, one in enumerate(bases) if one == basis]
        yield basis, places, [[values[place] for place in places] for values in lists]


def _axis(side: str) -> int:
    """The axis along which the atoms lie in the coordinates of a matrix."""
    return 0 if side == "left" else 1
