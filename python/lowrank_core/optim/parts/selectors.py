"""Who is at work in a period: a pure function of seed, period and place, so that a resumed run need not ask."""

from __future__ import annotations

from lowrank_core.optim.seeds import mix_seed


def selected(seed: int, period: int, count: int, active: int) -> frozenset[int]:
    """`active` of the numbers 0 to `count` - 1, all sets of that size with the same chance; all if there are fewer.

    Determinism: D0 (same on every device and level; docs/numerics.md). Draws from no global generator.
    """
    order = sorted(range(count), key=lambda number: mix_seed(seed, period, number))
    return frozenset(order[:active])
