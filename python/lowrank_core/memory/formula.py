"""The published accounting of optimizer state. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from lowrank_core.memory.geometry import place

Shape = Iterable[int]


def formula_state_bytes(
    projected: Iterable[Shape],
    others: int,
    *,
    rank: int,
    proj_type: str = "std",
    basis_bytes: float = 2,
    moment_bytes: float = 2,
    other_bytes: float = 2,
) -> float:
    """Bytes by the published accounting, which counts bases and moments alone, at any width.

    sum over projected weights of basis_bytes s r + 2 moment_bytes l r, and 2 other_bytes for every other parameter. It
    counts no step counters and no scales of quantized blocks, so it does not estimate a run; `estimate_state_bytes`
    does.

    Args:
      projected: shapes of the projected weights, rank below min(m, n).
      others: how many parameters all others have together.
      rank, proj_type: as in the optimizer.
      basis_bytes, moment_bytes, other_bytes: bytes per element of a basis, of a moment of a projected weight,
        and of a moment of the others.

    Source: the accounting behind the memory figures of COAP (arXiv:2412.00071), which it reproduces.

    Example:
      >>> from lowrank_core.memory import formula_state_bytes
      >>> formula_state_bytes([(11008, 4096)], others=0, rank=128)
      6684672
    """
    total = 2 * others * other_bytes
    for shape in projected:
        where, note = place(tuple(shape), rank, proj_type)
        if where is None:
            raise ValueError(f"formula_state_bytes: `projected` must be projectable, got {tuple(shape)}: {note}")
        total += sum(map(prod, where.basis_shapes.values())) * basis_bytes
        total += 2 * prod(where.low_shape) * moment_bytes
    return total
