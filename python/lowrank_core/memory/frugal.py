"""FRUGAL: where it projects a weight, and how much of a group is at work. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lowrank_core.memory.geometry import FULL, Geometry, Side, place
from lowrank_core.memory.storage import Layout, adam_fields, basis_fields, index_fields

SUBSPACES = ("columns", "rows", "random", "block", "svd")
DENSITY = 0.25


def place_frugal(shape: tuple[int, ...], keys: Mapping[str, Any]) -> tuple[Geometry | None, str]:
    """As `place`, for a weight in a group of `keys`: their `subspace` and `density`, or `rank`."""
    where, note = place(shape, None if keys["rank"] is None else 1)
    if where is None:
        return None, note
    side, lines = {
        "columns": (Side.RIGHT, where.cols),
        "rows": (Side.LEFT, where.rows),
        "block": (Side.WHOLE, min(where.rows, where.cols)),
    }.get(keys["subspace"], (where.side, min(where.rows, where.cols)))
    share = share_of(keys)
    if side == Side.WHOLE:
        if share == 1:
            return None, "density 1: lower it"
        notes = ["block: not at work at all times", *([note] if note else [])]
        return Geometry(where.rows, where.cols, side, lines if share else 0), ", ".join(notes)
    rank = keys["rank"] if share is None else max(1, int(share * lines)) if share else 0
    if rank >= lines:
        return None, f"rank {rank} >= {lines}: lower `rank` or `density`"
    return Geometry(where.rows, where.cols, side, rank), note


def share_of(keys: Mapping[str, Any]) -> float | None:
    """The share of lines, or of the matrices of a group, that is at work; None where a number of lines says it."""
    density, rank = keys["density"], keys["rank"]
    if density is not None:
        return float(density)
    if rank == FULL:
        return 1.0
    if isinstance(rank, float):
        return rank
    return DENSITY if keys["subspace"] == "block" else None


def active_of(share: float, count: int) -> int:
    """How many of the `count` matrices of a group are at work in "block" mode: at least one, unless `share` is 0."""
    return max(1, round(share * count)) if share else 0


def idle_bytes(share: float, sizes: Sequence[int]) -> int:
    """Bytes of the moments that matrices of a group need not have, of all their `sizes`: those of the smallest ones."""
    return sum(sorted(sizes)[: len(sizes) - active_of(share, len(sizes))])


def kept_fields(where: Geometry, subspace: str) -> tuple[Layout, Layout]:
    """Moments, and what keeps the subspace."""
    moments = adam_fields(where.low_shape)
    if where.side == Side.WHOLE:
        return moments, {}
    return moments, basis_fields(where) if subspace in ("random", "svd") and where.rank else index_fields(where)
