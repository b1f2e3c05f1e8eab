"""Normal numbers as a function of their place."""

from __future__ import annotations

from collections.abc import Sequence

from lowrank_core import _core
from lowrank_core.ops.arrays import Array


def fill_normal(out: Array, seed: int, *, divisor: float = 1.0) -> None:
    """`out` <- standard normal numbers of `seed` and the row-major place, over `divisor` > 0.

    `out` is [m, n], float32 or float64, contiguous and on the host. Computed in float64 and rounded once.

    Determinism: D0 (same bits on every device and level; docs/numerics.md). Source: Box, Muller 1958
    (doi:10.1214/aoms/1177706645), of Philox's bits.
    """
    fill_normal_list([out], [seed], [divisor])


def fill_normal_list(out: Sequence[Array], seeds: Sequence[int], divisors: Sequence[float]) -> None:
    """`fill_normal` of each of a list, side by side."""
    _core.gaussian(out, seeds=seeds, divisors=divisors)
