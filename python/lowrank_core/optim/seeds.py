"""Seeds as a function of position, so that no result depends on the order of calls."""

from __future__ import annotations

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def mix_seed(seed: int, *position: int) -> int:
    """A seed for one place: a hash of `seed` and, say, (index of the parameter, number of the refresh).

    Args:
      seed: any int; its low 64 bits count. The user's seed.
      position: ints; their low 64 bits count.

    Returns:
      int in [0, 2**63): fits a signed 64-bit operator argument.

    Determinism: D0 (same bits on every device and level; docs/numerics.md). Never touches a global generator.
    Source: the finalizer of splitmix64 (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195), applied once a
      word.
    """
    state = 0
    for word in (seed, *position):
        state = ((state ^ word) + _GOLDEN) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1
