"""Normal numbers as a function of their place."""

from __future__ import annotations

from lowrank_core import _core
from lowrank_core.ops.arrays import Array


def fill_normal(out: Array, seed: int) -> None:
    """`out` [m, n], float64, contiguous and on the host, <- standard normal numbers of `seed` and the row-major place.

    Determinism: D1 (same bits on one device and level; docs/numerics.md). Source: Box, Muller 1958
    (doi:10.1214/aoms/1177706645), of Philox's bits.
    """
    _core.gaussian(out, seed=seed)
