"""What `subspace_step_` does to a stored number, by itself: stochastic rounding and the storage of moments."""

from __future__ import annotations

from lowrank_core import _core
from lowrank_core.ops.arrays import Array


def round_stochastic(to: Array, value: Array, *, seed: int, step: int) -> None:
    """`to` [m, n] <- `value` as the step rounds a weight: bfloat16 without bias, other dtypes to nearest.

    Determinism: D0 (same bits on every device and level; docs/numerics.md), by (seed, step, row-major number of the
    element). Source: half.h, to_bfloat16 with random bits.
    """
    _core.round_stochastic(to, value, seed=seed, step=step)


def encode_moment(codes: Array, scales: Array | None, value: Array, *, second: bool, seed: int, step: int) -> None:
    """Stores `value`, contiguous float32, without bias: in bfloat16, or as codes with one scale for each 256 elements.

    Args:
      codes: bfloat16 with `scales` None; else int8, for a second moment uint8, whose codes are even in the root.
      second: whether it is the second moment, which has words of its own.

    Determinism: D0, by (seed, step, number of the element). Source: blockwise.h.
    """
    _core.encode_moment(codes, scales, value, second=second, seed=seed, step=step)


def decode_moment(value: Array, codes: Array, scales: Array | None, *, second: bool) -> None:
    """`value`, contiguous float32, <- what `encode_moment` stored."""
    _core.decode_moment(value, codes, scales, second=second)
