"""Philox4x32-10 on NumPy integers, stated independently of the C++ header that it is compared with.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 3.3 and table 2.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Words: TypeAlias = NDArray[np.uint64]
"""Numbers below 2**32, kept in 64 bits so that a product of two is exact."""

SKETCH_STREAM = 1
ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """The bijection on 128 bits that a key selects.

    Args:
      counter: [4, ...], words; the first is the least significant.
      key: two words.

    Returns:
      [4, ...], words.
    """
    low, shift = np.uint64(_LOW), np.uint64(32)
    c0, c1, c2, c3 = np.asarray(counter, dtype=np.uint64)
    for number in range(ROUNDS):
        k0, k1 = (np.uint64((k + number * w) & _LOW) for k, w in zip(key, _WEYL, strict=True))
        left, right = c0 * np.uint64(_MULTIPLIERS[0]), c2 * np.uint64(_MULTIPLIERS[1])
        c0, c1, c2, c3 = (right >> shift) ^ c1 ^ k0, right & low, (left >> shift) ^ c3 ^ k1, left & low
    return np.stack([c0, c1, c2, c3])


def blocks(seed: int, index: Words, *, stream: int, step: int = 0) -> Words:
    """[4, ...]: the 128 bits of each block number of `index`; key = seed, counter = (index, stream, step)."""
    index = np.asarray(index, dtype=np.uint64)
    constant = np.ones_like(index)
    counter = np.stack([index & np.uint64(_LOW), index >> np.uint64(32), constant * stream, constant * step])
    return philox4x32(counter, (seed & _LOW, seed >> 32))


def bits(seed: int, element: Words, *, stream: int, step: int = 0) -> Words:
    """[...]: 32 random bits for each element; four consecutive elements share a block."""
    element = np.asarray(element, dtype=np.uint64)
    words = blocks(seed, element >> np.uint64(2), stream=stream, step=step)
    return np.take_along_axis(words, (element & np.uint64(3)).astype(np.intp)[None], axis=0)[0]


def signs(rows: int, cols: int, seed: int, *, step: int = 0, stream: int = SKETCH_STREAM) -> NDArray[np.float64]:
    """A Rademacher sketch [rows, cols]: bit e mod 128 of block e // 128, e the row-major index; 1 is +1, 0 is -1."""
    element = np.arange(rows * cols, dtype=np.uint64)
    every = np.arange((rows * cols + 127) // 128, dtype=np.uint64)
    words = blocks(seed, every, stream=stream, step=step).T.reshape(-1)  # word w holds elements 32 w .. 32 w + 31
    coin = (words[element >> np.uint64(5)] >> (element & np.uint64(31))) & np.uint64(1)
    return np.where(coin == 1, 1.0, -1.0).reshape(rows, cols)
