"""Where a weight is projected: its matrix view, the side and the rank, decided from shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property, lru_cache
from math import prod
from typing import Any

from lowrank_core.checks import is_count, require

ONE_SIDED = ("std", "reverse_std", "left", "right")  # values of `proj_type`, those with one basis
PROJ_TYPES = (*ONE_SIDED, "full")
WHOLE = "whole"  # stands for a value of `proj_type` where a method takes matrices whole
FULL = "full"  # the rank that stands for min(m, n)
RANKS = f'be an int >= 1, a share of min(m, n) in (0, 1], "{FULL}" or None'  # the values of `rank`, for refusals

Rank = int | float | str


class Side(IntEnum):
    """Which dimension the basis spans; the value is what `proj.side` holds in the state."""

    LEFT = 0  # basis [m, r], R = P^T G
    RIGHT = 1  # basis [n, r], R = G P
    BOTH = 2  # bases [m, r] and [n, r], R = U^T G V
    WHOLE = 3  # no basis, R = G; at rank 0 nothing of it


@dataclass(frozen=True)
class Geometry:
    """A projected weight seen as `[rows, cols]`, with the side of its basis and the effective rank."""

    rows: int
    cols: int
    side: Side
    rank: int

    @property
    def low_shape(self) -> tuple[int, int]:
        """The shape of the projected gradient, and so of its moments."""
        if self.side == Side.WHOLE:
            return (self.rows, self.cols) if self.rank else (0, 0)
        left, right = self.side in (Side.LEFT, Side.BOTH), self.side in (Side.RIGHT, Side.BOTH)
        return (self.rank if left else self.rows, self.rank if right else self.cols)

    @property
    def elements(self) -> int:
        """Elements of the bases and of two moments: s r + 2 l r on one side with s, l = min, max(m, n)."""
        return sum(map(prod, self.basis_shapes.values())) + 2 * prod(self.low_shape)

    @cached_property
    def basis_shapes(self) -> dict[str, tuple[int, int]]:
        """The shape of an orthonormal basis by its side, "left" or "right"."""
        left, right = self.side in (Side.LEFT, Side.BOTH), self.side in (Side.RIGHT, Side.BOTH)
        bases = {"left": (self.rows, self.rank)} if left else {}
        return bases | {"right": (self.cols, self.rank)} if right else bases

    def at(self, rank: int) -> Geometry:
        """The same weight with a subspace of `rank` dimensions."""
        return self if rank == self.rank else replace(self, rank=rank)


def shorter_side(shape: tuple[int, ...]) -> int:
    """min(m, n) of `shape` seen as `[d0, the rest]`; 1 for fewer than two dimensions, 0 for nothing."""
    return min(shape[0], prod(shape[1:])) if len(shape) >= 2 else min(1, prod(shape))


def is_rank(value: object) -> bool:
    """True for what a group may have under `rank`, None aside."""
    if isinstance(value, float):
        return 0 < value <= 1
    return value == FULL if isinstance(value, str) else is_count(value, 1)


def rank_of(keys: Mapping[str, Any], shorter: int) -> int | None:
    """The rank that a group of `keys` asks for in a matrix with `shorter` = min(m, n); None if it asks for none.

    A share is rounded down, to 1 at least.
    """
    rank = keys["rank"]
    if rank == FULL:
        return shorter
    return max(1, int(rank * shorter)) if isinstance(rank, float) else rank


def is_matrix(shape: tuple[int, ...]) -> bool:
    """True if `shape`, seen as `[d0, the rest]`, has at least two rows and two columns."""
    return shorter_side(shape) >= 2


def check_stack(op: str, name: str, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless a parameter of `shape` can be taken as E matrices [m, n]."""
    met, rule = len(shape) == 3 and shape[0] > 0, "be [E, m, n] with E >= 1, which `stacked` takes as E matrices"
    require(met, op, name, rule, shape, "leave it to a group without `stacked`")


@lru_cache(maxsize=4096)
def place(
    shape: tuple[int, ...], rank: int | None, proj_type: str = "std", force: bool = False
) -> tuple[Geometry | None, str]:
    """Decides how a weight of `shape` is projected.

    More than two dimensions are seen as `[d0, the rest]`. `std` puts the basis on the shorter side, a square
    matrix on the right; `reverse_std` on the longer one, a square matrix on the left.

    Args:
      shape: of the weight.
      rank: >= 1, or None if its group asks for none.
      proj_type: one of `PROJ_TYPES`; or `WHOLE`, for which any rank will do.
      force: project even if `rank` >= min(m, n), at rank min(m, n).

    Returns:
      (geometry, remark), or (None, reason and what would change it) if the weight takes the plain path.

    Source: Zhao et al. 2024 (GaLore, arXiv:2403.03507); side rule of its code, where a square matrix goes
      right.
    """
    if len(shape) < 2:
        return None, f"{len(shape)}-D"
    if prod(shape) == 0:
        return None, "empty"
    rows, cols = shape[0], prod(shape[1:])
    shorter = shorter_side(shape)
    if shorter == 1 and not force:
        return None, f"{rows} x {cols}: a vector"
    if rank is None:
        return None, "its group has no rank: give it one"
    if proj_type == WHOLE:
        return Geometry(rows, cols, Side.WHOLE, shorter), ", ".join(["whole: `rank` only marks it", *_seen_as(shape)])
    if rank >= shorter and not force:
        return None, f"rank {rank} >= min(m, n) = {shorter}: lower `rank`, or force_projection=True"
    wide = rows < cols
    side = {
        "std": Side.LEFT if wide else Side.RIGHT,
        "reverse_std": Side.RIGHT if wide else Side.LEFT,
        "left": Side.LEFT,
        "right": Side.RIGHT,
        "full": Side.BOTH,
    }[proj_type]
    notes = _seen_as(shape)
    if rank > shorter:
        notes.append(f"rank {rank} lowered to min(m, n)")
    where = Geometry(rows, cols, side, min(rank, shorter))
    if where.elements > 2 * rows * cols:
        notes.append("saves no memory at this rank")
    return where, ", ".join(notes)


def place_by(
    shape: tuple[int, ...],
    keys: Mapping[str, Any],
    ranked: Callable[[Mapping[str, Any], int], int | None] = rank_of,
    full_rank: str = "plain",
) -> tuple[Geometry | None, str]:
    """`place` for a weight in a group of `keys`.

    Args:
      shape: of the weight.
      keys: of its group; where a method has no `proj_type` or `force_projection` they are not there.
      ranked: gives the rank that the group asks for in a matrix with a given min(m, n).
      full_rank: what becomes of a matrix whose rank is not below min(m, n): "plain" or "project"; or "whole": every
        matrix is taken whole. A vector is no matrix.
    """
    shorter = shorter_side(shape)
    force = keys.get("force_projection", False) or (full_rank == "project" and shorter > 1)
    proj_type = WHOLE if full_rank == WHOLE else keys.get("proj_type", "std")
    return place(shape, ranked(keys, shorter), proj_type, force)


def _seen_as(shape: tuple[int, ...]) -> list[str]:
    return [f"seen as {shape[0]} x {prod(shape[1:])}"] if len(shape) > 2 else []
